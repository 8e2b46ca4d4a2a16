"""`cgrseg predict` alone, beside busy processes, and under a CPU quota: images per second.

Each measurement is a `cgrseg predict` of its own, with the default options; the first image, which
waits for work that is done once, does not count.  The network's own speed is that of its logits
alone, one image after another, on all cores.  Ratios are taken within a round:

    python benchmarks/contention.py --prepare               # images, weights, compiled networks
    python benchmarks/contention.py --out contention.json   # all tables
    python benchmarks/contention.py --out contention.json --sizes 512x512 --forms eager  # again

Rounds are added to those in the file.  Busy processes run in the same session as the prediction,
so that the system gives each busy thread the same share.  The quota needs Linux and the right to
make a control group (root, version 1 or 2).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SIZES = {"128x96": (384, 512), "512x512": (512, 512)}  # network's input: height and width of images
FORMS = {"eager": "off", "compiled": "on"}
CONDITIONS = ("network alone", "alone", "beside one", "beside two", "taskset", "quota")
BUSY = {"beside one": 1, "beside two": 2}
_LOOP = "while True: pass"
_QUOTA = 100_000  # microseconds per period of as many: one CPU


def main() -> None:
    """Measure one round, add it to the file, and print the table of all rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON file of all rounds")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "cgrseg-contention",
        help="images and weights, made once",
    )
    parser.add_argument("--prepare", action="store_true", help="measure nothing")
    parser.add_argument("--network", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.network:
        network_alone(given.folder, given.sizes[0], given.forms[0], given.images)
        return
    prepare_files(given.folder, given.images)
    rounds = json.loads(given.out.read_text()) if given.out and given.out.exists() else []
    for size in given.sizes:
        for form in given.forms:
            if given.prepare:
                for condition in ("network alone", "alone"):
                    measure(given.folder, size, form, condition, given.images)
                continue
            speeds = {
                condition: measure(given.folder, size, form, condition, given.images)
                for condition in given.conditions
            }
            rounds.append({"size": size, "form": form, "images per second": speeds})
            print(json.dumps(rounds[-1]), file=sys.stderr)
    if given.out and not given.prepare:
        given.out.write_text(json.dumps(rounds, indent=1) + "\n")
    print_table(rounds)


def prepare_files(folder: Path, images: int) -> None:
    """Make scenes of each size, and random weights that behave like trained ones."""
    from cgrseg.data.synthetic.writer import write_dataset

    folder.mkdir(parents=True, exist_ok=True)
    for size, sides in SIZES.items():
        write_dataset(folder / size, train=images, val=1, size=sides, overwrite=True)
    if not (folder / "t").is_dir():
        from cgrseg import create_model
        from cgrseg.bench.random_weights import draw_weights

        draw_weights(create_model("cgrseg_t", num_classes=150)).save_pretrained(folder / "t")


def measure(folder: Path, size: str, form: str, condition: str, images: int) -> float:
    """Images per second under one condition, in processes of their own."""
    if condition == "network alone":
        options = ["--network", "--folder", str(folder), "--images", str(images)]
        command = [sys.executable, __file__, *options, "--sizes", size, "--forms", form]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    before: Sequence[str] = ()
    with contextlib.ExitStack() as stack:
        for _ in range(BUSY.get(condition, 0)):
            busy = subprocess.Popen([sys.executable, "-c", _LOOP])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        if condition == "taskset":
            before = ("taskset", "-c", str(min(os.sched_getaffinity(0))))
        if condition == "quota":
            group = stack.enter_context(quota_group())
            before = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        out = folder / "predictions"
        shutil.rmtree(out, ignore_errors=True)
        long, short = size.split("x")
        command = [sys.executable, "-m", "cgrseg", "predict", str(folder / "t")]
        command += [str(folder / size / "images" / "training"), f"test.scale=[{long},{short}]"]
        command += ["--out", str(out), "--compile", FORMS[form]]
        subprocess.run([*before, *command], check=True, stdout=subprocess.DEVNULL)
        # The label map is the last file that is written for an image.
        done = sorted(path.stat().st_mtime for path in (out / "labels").glob("*.png"))
    if len(done) != images:
        raise SystemExit(f"{len(done)} label maps of {images} images")
    return (images - 1) / (done[-1] - done[0])


def network_alone(folder: Path, size: str, form: str, images: int) -> None:
    """Print images per second of the network's logits in this process."""
    from cgrseg.cpus import prepare_openmp

    prepare_openmp(os.environ)
    import torch

    from cgrseg import Predictor

    predictor = Predictor.from_pretrained(folder / "t", "cpu", compile=form == "compiled")
    long, short = (int(side) for side in size.split("x"))
    predictor.backend.prepare(short, long)
    batch = torch.rand(1, 3, short, long)
    for number in range(images):
        if number == 1:
            start = time.perf_counter()
        predictor.backend.logits(batch)
    print((images - 1) / (time.perf_counter() - start))


@contextlib.contextmanager
def quota_group() -> Iterator[Path]:
    """Folder of a new control group whose processes may use one CPU's time."""
    name = f"cgrseg-contention-{os.getpid()}"
    first, second = Path("/sys/fs/cgroup/cpu") / name, Path("/sys/fs/cgroup") / name
    group = first if first.parent.is_dir() else second
    group.mkdir()
    try:
        if group == first:
            (group / "cpu.cfs_period_us").write_text(str(_QUOTA))
            (group / "cpu.cfs_quota_us").write_text(str(_QUOTA))
        else:
            (group / "cpu.max").write_text(f"{_QUOTA} {_QUOTA}")
        yield group
    finally:
        group.rmdir()


def print_table(rounds: Sequence[dict[str, object]]) -> None:
    """Print medians over the rounds: images per second, and ratios taken within a round."""
    import torch

    from cgrseg.bench.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    print(f"{machine.device}, {machine.cores} cores, PyTorch {torch.__version__}\n")
    print("| network's input, form | rounds |", " | ".join(CONDITIONS), end=" | ")
    print("alone / network | beside one / alone | beside two / alone | quota / taskset |")
    print("|---|---:|" + "---:|" * (len(CONDITIONS) + 4))
    pairs = (
        ("alone", "network alone"),
        ("beside one", "alone"),
        ("beside two", "alone"),
        ("quota", "taskset"),
    )
    for size in SIZES:
        for form in FORMS:
            found = [
                each["images per second"]
                for each in rounds
                if (each["size"], each["form"]) == (size, form)
            ]
            if not found:
                continue
            cells = [_median([each[name] for each in found if name in each]) for name in CONDITIONS]
            cells += [
                _median([each[a] / each[b] for each in found if a in each and b in each])
                for a, b in pairs
            ]
            print(f"| {size}, {form} | {len(found)} |", " | ".join(cells), "|")


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else ""


if __name__ == "__main__":
    main()
