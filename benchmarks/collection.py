"""Prediction of images in object storage: `cgrseg predict` alone, and with `--engine ray`.

A loopback S3 server (moto) holds small copies of real images, one of them damaged.  The plain
command labels them first.  Then two workers of a local Ray cluster do, and one of them is killed
(SIGKILL) half way.  The script compares every label file byte for byte, checks the table, the
message about the damaged image and the exit status, and ends with status 1 if anything differs.

Needs `pip install s3fs "moto[server]"` beside the extra [ray].

    python benchmarks/collection.py best.pth FOLDER_OF_IMAGES test.scale=[128,96] --no-compile

Options that are not of this script are given to both commands.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet as pq
import s3fs
import torch

from cgrseg.bench.machine import describe_machine
from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import label_note, read_label

_BUCKET = "collection"


def main() -> int:
    """Run the comparison; the exit status says whether everything agreed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=128, help="long side in pixels")
    parser.add_argument("--no-kill", action="store_true", help="let both workers live")
    parser.add_argument("--port", type=int, default=5123)
    given, given.options = parser.parse_known_args()
    address = f"http://127.0.0.1:{given.port}"
    login = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": address}
    os.environ.update(login, AWS_DEFAULT_REGION="us-east-1")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(given.port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        contents = store(given.folder, given.images, given.size)
        with tempfile.TemporaryDirectory() as folder:
            return compare(given, contents, Path(folder))
    finally:
        server.kill()


def store(folder: Path, count: int, size: int) -> dict[str, bytes]:
    """Put images into the bucket; the one in the middle is cut off."""
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    for _ in range(100):
        try:
            system.mkdir(_BUCKET)
            break
        except Exception:  # the server starts
            time.sleep(0.2)
    sources = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    contents = {}
    for number in range(count):
        image = read_image(sources[number % len(sources)])
        factor = size / max(image.shape[:2])
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = cv2.add(image, number // len(sources))  # no two images are equal
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        name = f"{number % 10}/{number:05}.jpg"
        contents[name] = data[: len(data) // 2] if number == count // 2 else data
    system.pipe({f"{_BUCKET}/{name}": data for name, data in contents.items()})
    return contents


def compare(given: Any, contents: dict[str, bytes], folder: Path) -> int:
    """Run both commands, print what was found, and count what differs."""
    print(f"machine: {describe_machine(torch.device('cpu'))}")
    damaged = f"s3://{_BUCKET}/{list(contents)[given.images // 2]}"
    seconds: dict[str, tuple[float, float]] = {}
    texts: dict[str, str] = {}
    for engine in ("plain", "ray"):
        command = [sys.executable, "-m", "cgrseg", "predict", given.checkpoint, f"s3://{_BUCKET}"]
        command += ["--out", str(folder / engine), "--no-overlays", *given.options]
        command += ["--engine", "ray", "--workers", "2"] if engine == "ray" else []
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        killed = engine == "plain" or given.no_kill
        first = 0.0
        while process.poll() is None:
            time.sleep(0.5)
            done = sum(1 for _ in (folder / engine / "labels").rglob("*.png"))
            first = first or (time.monotonic() if done else 0.0)
            if not killed and done > given.images // 2:
                victim = workers_below(process.pid)[0]
                os.kill(victim, signal.SIGKILL)
                killed = True
                print(f"killed worker {victim} after {done} images")
        seconds[engine] = (time.monotonic() - begin, time.monotonic() - first)
        texts[engine] = process.stdout.read().decode() if process.stdout else ""
        rates = [given.images / each for each in seconds[engine]]
        print(
            f"{engine}: status {process.returncode}, {seconds[engine][0]:.1f} s, {rates[0]:.2f} "
            f"images/s; {rates[1]:.2f} from the first label on; load {os.getloadavg()[0]:.1f}"
        )
        print("    " + "\n    ".join(texts[engine].strip().splitlines()[-6:]))
        if process.returncode != 1 or damaged not in texts[engine]:
            print(f"WRONG: {engine} does not name {damaged}, or has another status than 1")
            return 1
    labels = {
        engine: {
            path.relative_to(folder / engine).as_posix(): path.read_bytes()
            for path in (folder / engine / "labels").rglob("*.png")
        }
        for engine in seconds
    }
    rows = pq.read_table(folder / "ray" / "predictions.parquet").to_pylist()
    digests = {f"s3://{_BUCKET}/{name}": data for name, data in contents.items()}
    for name in sorted({*labels["plain"], *labels["ray"]}):
        pair = [labels[engine].get(name) for engine in labels]
        if None in pair:
            print(f"WRONG: {name} is missing ({[each is None for each in pair]})")
        elif pair[0] != pair[1]:
            plain, ray = (read_label(folder / engine / name) for engine in labels)
            notes = [label_note(folder / engine / name) for engine in labels]
            print(f"WRONG: {name}: {int((plain != ray).sum())} pixels differ; notes {notes}")
    wrong = {
        "label files": len(labels["plain"]) != given.images - 1 or labels["plain"] != labels["ray"],
        "images in the table": sorted(row["image"] for row in rows) != sorted(digests),
        "errors": [row["image"] for row in rows if row["error"]] != [damaged],
        "digests": any(
            row["sha256"] != hashlib.sha256(digests[row["image"]]).hexdigest()
            for row in rows
            if not row["error"]
        ),
        "sums of shares": any(
            abs(sum(row["shares"].values()) - 1) > 1e-3 for row in rows if not row["error"]
        ),
    }
    whole, steady = (
        plain / ray for plain, ray in zip(seconds["plain"], seconds["ray"], strict=True)
    )
    print(f"throughput of Ray: {whole:.3f} of the plain command's, start included")
    print(f"    {steady:.3f} from the first label on")
    print(f"{len(labels['ray'])} label files, {len(rows)} rows; wrong: {wrong}")
    return int(any(wrong.values()))


def workers_below(parent: int) -> list[int]:
    """Processes of Ray's workers that descend from a process."""
    found: list[int] = []
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, line = (entry / "status").read_text(), (entry / "cmdline").read_text()
        except OSError:
            continue
        match = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        parents[int(entry.name)] = (int(match[1]) if match else 0, line)
    for process, (_, line) in parents.items():
        above = process
        while above in parents and above != parent:
            above = parents[above][0]
        if above == parent and line.startswith("ray::_Worker"):
            found.append(process)
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
