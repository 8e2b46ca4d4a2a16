"""The pieces of `scripts/gpu_check.py`: which commands they run, and what they read from them."""

from __future__ import annotations

import abc
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parents[1]
CGRSEG = (PYTHON, "-m", "cgrseg")
VARIANTS = ("cgrseg_t", "cgrseg_b", "cgrseg_l")
_GRACE = 20.0  # seconds from SIGTERM to SIGKILL


class PieceFailed(Exception):
    """A command of a piece failed."""


class Skipped(Exception):
    """A piece cannot run here; the message says why."""


class Left(Exception):
    """The time of the call is over; the next call repeats or continues the piece."""


class Check(abc.ABC):
    """What a piece may use.

    Args:
        device: "cuda", "cuda:0" or "cpu".
        tiny: rehearse at tiny sizes.
        work: folder of data, checkpoints and caches.
        camvid: root of CamVid; None: where it is found.
    """

    def __init__(self, device: str, tiny: bool, work: Path, camvid: Path | None) -> None:
        self.device = device
        self.tiny = tiny
        self.work = work
        self.given_camvid = camvid
        self.commands: list[str] = []

    @abc.abstractmethod
    def run(self, *words: object, expected: int = 0) -> str:
        """Run a command to its end; returns what it printed."""

    @abc.abstractmethod
    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start a command."""

    @abc.abstractmethod
    def finish(self, process: subprocess.Popen[str], expected: int = 0) -> None:
        """Wait for a started command."""

    def python(self, program: str, *words: object) -> Any:
        """Run a short program; returns the JSON value of its last line."""
        return json.loads(self.run(PYTHON, "-c", program, *words).strip().splitlines()[-1])

    @property
    def camvid(self) -> Path | None:
        """Root of CamVid, if it is on this machine."""
        places = [self.given_camvid, ROOT / "data/camvid"]
        found = (place for place in places if place is not None and (place / "images").is_dir())
        return None if self.tiny else next(found, None)


@dataclass(frozen=True)
class Piece:
    """A part of the check.

    Attributes:
        name: name on the command line and of the result file.
        title: what it checks.
        run: does it; returns values for JSON.
    """

    name: str
    title: str
    run: Callable[[Check], dict[str, Any]]


_ABOUT = """
import importlib.metadata as m, json, platform, sys, torch
names = "torch triton lightning torchmetrics numpy opencv-python-headless onnxruntime tensorrt"
found = {"device": platform.machine(), "Python": platform.python_version()}
found["system"] = platform.platform()
if sys.argv[1].startswith("cuda"):
    p = torch.cuda.get_device_properties(sys.argv[1])
    found |= {"device": p.name, "memory": f"{p.total_memory / 2**30:.0f} GiB",
              "compute capability": f"{p.major}.{p.minor}", "CUDA": torch.version.cuda,
              "cuDNN": str(torch.backends.cudnn.version()), "GPUs": torch.cuda.device_count()}
for name in [*names.split(), "onnxruntime-gpu"]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


def _environment(check: Check) -> dict[str, Any]:
    found: dict[str, Any] = check.python(_ABOUT, check.device)
    check.run(*CGRSEG, "info", "--json")
    return found


def _tests(check: Check) -> dict[str, Any]:
    files = [
        file
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in file.read_text(encoding="utf-8")
    ]
    told = check.run(PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files)
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", told)
    return {kind: int(number) for number, kind in found}


def _refuse_uncompiled(text: str) -> None:
    """A network that could not be compiled runs in another form; its figures would mislead."""
    if "uncompiled" in text:
        line = next(line for line in text.splitlines() if "uncompiled" in line)
        raise PieceFailed(f"the network was not compiled: {line}")


def _bench(variant: str, batch: int, *subjects: str) -> Callable[[Check], dict[str, Any]]:
    def run(check: Check) -> dict[str, Any]:
        out = check.work / f"bench_{variant}_{batch}_{subjects[0]}.json"
        words = ["--subjects", ",".join(subjects), "--device", check.device, "--out", out]
        if check.tiny:
            words += ["--size", "64", "--num-classes", "5", "--batch-size", min(batch, 2)]
            words += ["--rounds", "1", "--no-memory", "--no-peaks"]
        else:
            words += ["--batch-size", batch, "--rounds", "15"]
            # Memory is measured with one image, in processes of their own.
            words += [] if batch == 1 else ["--no-memory", "--no-peaks"]
        check.run(*CGRSEG, "bench", variant, *words)
        found = json.loads(out.read_text())
        for one in found["agreements"]:
            _refuse_uncompiled(one["preparation"])
        return {"bench": found["rows"], **{k: found[k] for k in ("agreements", "memory", "peaks")}}

    return run


def _training(variant: str, *contestants: str) -> Callable[[Check], dict[str, Any]]:
    def run(check: Check) -> dict[str, Any]:
        out = check.work / f"training_{variant}_{contestants[-1]}.json"
        words: list[object] = ["--models", variant, "--contestants", *contestants]
        words += ["--device", check.device, "--json", out]
        if check.tiny:
            words += ["--size", "64", "--batch", "2", "--classes", "5", "--rounds", "2"]
            words += ["--no-memory", "--threads", "1"]
        else:
            words += ["--batch", "16", "--rounds", "15"]
        check.run(PYTHON, "benchmarks/training.py", *words)
        return {"training": json.loads(out.read_text())["rows"]}

    return run


def _data(check: Check) -> tuple[str, Path, str, Path]:
    """Preset, dataset root, split to evaluate and folder of its images."""
    if check.camvid is not None:
        return "cgrseg-t_camvid", check.camvid, "test", check.camvid / "images" / "test"
    root = check.work / "data"
    train, val = (12, 4) if check.tiny else (240, 60)
    counts = ("--train-scenes", train, "--val-scenes", val)
    check.run(*CGRSEG, "data", "synth", root, *counts)  # what is complete is kept
    return "cgrseg-t_synthetic", root, "val", root / "images" / "validation"


def _train(check: Check) -> dict[str, Any]:
    """Train, or continue the training that an earlier call began."""
    preset, root, _, _ = _data(check)
    run = check.work / "run"
    words: list[object] = ["--data-root", root, "--work-dir", run, "--device", check.device]
    if check.tiny:
        words += ["schedule.max_iters=4", "schedule.warmup_iters=1", "train.eval_interval=4"]
        words += ["train.batch_size=2", "augment.crop_size=[64,64]", "train.precision=fp32"]
    if (run / "latest.pth").is_file():
        words += ["--resume"]
    start = time.monotonic()
    told = check.run(*CGRSEG, "train", preset, *words)
    rates = [float(rate) for rate in re.findall(r"([\d.]+) images/s", told)]
    scores = re.findall(r"evaluation at (\d+): mIoU ([\d.]+) %", told)
    return {
        "data": preset,
        "seconds of this call": round(time.monotonic() - start, 1),
        "images/s (median of the log)": sorted(rates)[len(rates) // 2] if rates else None,
        "mIoU": {iteration: float(score) for iteration, score in scores},
    }


def _checkpoint(check: Check) -> Path:
    """The trained checkpoint."""
    best = check.work / "run" / "best.pth"
    if not best.is_file():
        raise PieceFailed("no checkpoint: the piece `train` has to be done first")
    return best


def _evaluate(*options: str) -> Callable[[Check], dict[str, Any]]:
    def run(check: Check) -> dict[str, Any]:
        preset, root, split, _ = _data(check)
        words: list[object] = [preset, _checkpoint(check), "--data-root", root, "--split", split]
        words += ["--device", check.device, "--json", *options, f"work_dir={check.work / 'scores'}"]
        start = time.monotonic()
        told = check.run(*CGRSEG, "evaluate", *words)
        seconds = time.monotonic() - start
        _refuse_uncompiled(told)
        found = json.loads(told[told.index("\n{") : told.rindex("}") + 1])
        mean = found["scores"]["mIoU"]
        return {"split": split, "mIoU": mean, "seconds with start": round(seconds, 1)}

    return run


_EQUAL = """
import cv2, json, sys
from pathlib import Path
equal = total = 0
for file in sorted(Path(sys.argv[1]).rglob("*.png")):
    one = cv2.imread(str(file), -1)
    other = cv2.imread(str(Path(sys.argv[2]) / file.relative_to(sys.argv[1])), -1)
    equal += int((one == other).sum()); total += one.size
print(json.dumps([equal, total]))
"""


def _images(check: Check) -> list[Path]:
    files = sorted(file for file in _data(check)[3].iterdir() if file.is_file())
    return files[: 3 if check.tiny else 60]


def _labels(check: Check, out: str, device: str, *options: object) -> tuple[object, ...]:
    """Words of a prediction into a folder of the work folder."""
    words = [*CGRSEG, "predict", _checkpoint(check), *_images(check), "--overwrite"]
    return (*words, "--no-overlays", "--out", check.work / out, "--device", device, *options)


def _equal(check: Check, one: str, other: str) -> float:
    equal, total = check.python(_EQUAL, check.work / one, check.work / other)
    if not total:
        raise PieceFailed(f"no label maps in {one}")
    return float(equal / total)


def _predict(check: Check) -> dict[str, Any]:
    check.run(*_labels(check, "labels_cpu", "cpu"))
    shares = {}
    for name, options in (("fp32", ()), ("bf16", ("--precision", "bf16"))):
        check.run(*_labels(check, f"labels_{name}", check.device, *options))
        shares[f"labels equal to the CPU's, {name}"] = _equal(check, "labels_cpu", f"labels_{name}")
    if shares["labels equal to the CPU's, fp32"] < 0.995:
        raise PieceFailed(f"too many labels differ from the CPU's: {shares}")
    return shares


def end(process: subprocess.Popen[str]) -> None:
    """End a command that we started, and what it started; a training saves its state first."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _two_processes(check: Check) -> dict[str, Any]:
    start = time.monotonic()
    check.run(*_labels(check, "labels_alone", check.device))
    alone = time.monotonic() - start
    start = time.monotonic()
    both = [check.start(*_labels(check, name, check.device)) for name in ("labels_a", "labels_b")]
    try:
        for process in both:
            check.finish(process)
    finally:
        for process in both:
            end(process)
    beside = time.monotonic() - start
    shares = [_equal(check, "labels_alone", name) for name in ("labels_a", "labels_b")]
    if min(shares) < 0.999:
        raise PieceFailed(f"labels of two processes at once differ from those of one: {shares}")
    found = {"seconds alone": round(alone, 1), "seconds of two at once": round(beside, 1)}
    return {**found, "equal labels": min(shares), **_two_ranks(check)}


def _two_ranks(check: Check) -> dict[str, Any]:
    """Two ranks on one GPU are refused with a message; NCCL would hang or fail."""
    if check.device == "cpu":
        return {}
    count = check.python("import torch, json; print(json.dumps(torch.cuda.device_count()))")
    if count != 1:
        return {"two ranks": f"not tried, this machine has {count} GPUs"}
    preset, root, _, _ = _data(check)
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    script = (ROOT / "tools/train.py", preset, "--work-dir", check.work / "two_ranks")
    told = check.run(PYTHON, *words, *script, "--data-root", root, expected=1)
    if "at most one process per GPU" not in told:
        raise PieceFailed("two ranks on one GPU: no message that says why they are refused")
    return {"two ranks": "refused with a message"}


def _onnx(provider: str) -> Callable[[Check], dict[str, Any]]:
    def run(check: Check) -> dict[str, Any]:
        lacking = [
            name
            for name in ("onnx", "onnxscript", "onnxruntime")
            if importlib.util.find_spec(name) is None
        ]
        if lacking:
            raise Skipped(f"not installed: {', '.join(lacking)}")
        used = "CPUExecutionProvider" if check.tiny else provider
        program = "import json, onnxruntime as o; print(json.dumps(o.get_available_providers()))"
        if used not in check.python(program):
            raise Skipped(f"this ONNX Runtime has no {used}")
        size = "64" if check.tiny else "512"
        file = check.work / "network.onnx"
        words = ("--format", "onnx", "--size", size, "--out", file, "--overwrite")
        check.run(*CGRSEG, "export", _checkpoint(check), *words)
        found = check.run(PYTHON, "scripts/gpu_onnx.py", file, used, size)
        return dict(json.loads(found.strip().splitlines()[-1]))

    return run


def _pieces() -> Sequence[Piece]:
    bf16 = ("--precision", "bf16")
    pieces = [
        Piece("environment", "device and versions", _environment),
        Piece("tests", "the tests marked gpu", _tests),
        Piece("train", "a training on CamVid, or on synthetic scenes, with evaluation", _train),
        Piece("evaluate-fp32", "evaluation in fp32", _evaluate()),
        Piece("evaluate-bf16", "evaluation in bf16, 8 images at once",
              _evaluate(*bf16, "--batch-size", "8")),
        Piece("evaluate-compiled", "evaluation of the compiled network in bf16",
              _evaluate(*bf16, "--compile")),
        Piece("predict", "label maps beside those of the CPU", _predict),
        Piece("two-processes", "two processes on one GPU", _two_processes),
        Piece("onnxruntime-cuda", "ONNX Runtime with CUDA", _onnx("CUDAExecutionProvider")),
        Piece("onnxruntime-tensorrt", "ONNX Runtime with TensorRT",
              _onnx("TensorrtExecutionProvider")),
    ]  # fmt: skip
    eager = ("eager", "eager-channels-last", "eager-bf16", "eager-fp16")
    folded = ("folded-fp32", "folded-bf16", "folded-fp16")
    for variant in VARIANTS:
        for batch in (1, 32):
            name = f"bench-{variant[-1]}-batch{batch}"
            title = f"prediction, {variant}, batch {batch}"
            run = _bench(variant, batch, *eager, *folded)
            pieces.append(Piece(f"{name}-eager", f"{title}, eager and folded", run))
            for precision in ("fp32", "bf16", "fp16"):
                run = _bench(variant, batch, f"compiled-{precision}")
                compiled = f"{title}, compiled with CUDA graphs, {precision}"
                pieces.append(Piece(f"{name}-compiled-{precision}", compiled, run))
    for variant in VARIANTS:
        name, title = f"training-{variant[-1]}", f"training step, {variant}, batch 16"
        run = _training(variant, "plain", "fused", "fused-channels-last", "bf16")
        pieces.append(Piece(f"{name}-eager", f"{title}, eager", run))
        run = _training(variant, "plain", "compiled", "compiled-bf16")
        pieces.append(Piece(f"{name}-compiled", f"{title}, compiled", run))
    return pieces


PIECES = _pieces()
"""All pieces in the order in which they run."""
