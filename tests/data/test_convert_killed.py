"""A conversion that is killed at any instant ends, started again, with the same label maps."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cgrseg.data.convert import convert_rgb_masks
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label

COLORS = {"a": (9, 9, 9), "b": (1, 1, 1)}
COUNT = 60


def masks(folder: Path, values: list[int]) -> None:
    for k, value in enumerate(values):
        write_image(folder / "masks" / f"{k:02}.png", np.full((16, 16, 3), value, np.uint8))


def table(folder: Path, order: str) -> Path:
    path = folder / f"{order}.txt"
    path.write_text("".join(f"{name} {' '.join(map(str, COLORS[name]))}\n" for name in order))
    return path


@pytest.mark.slow
def test_killed_at_any_instant_the_label_maps_are_those_of_the_sources(tmp_path: Path) -> None:
    """Sources that change, and an overwriting with the other order of classes, in turn."""
    chance = random.Random(0)
    for k in range(COUNT):
        write_image(tmp_path / "photos" / f"{k:02}.png", np.full((16, 16, 3), k, np.uint8))
    values = [9] * COUNT
    masks(tmp_path, values)
    out, order = tmp_path / "out", "ab"
    for attempt in range(10):
        command = [sys.executable, "-m", "cgrseg", "data", "convert", "rgb"]
        command += [str(tmp_path / "photos"), str(tmp_path / "masks"), str(out), "--workers", "2"]
        command += ["--colours", str(table(tmp_path, order))]
        if attempt % 3 == 2:
            order = order[::-1]
            (out / "classes.txt").unlink(missing_ok=True)
            command[-1] = str(table(tmp_path, order))
            command.append("--overwrite")
        else:
            values = [chance.choice([1, 9]) for _ in values]
            masks(tmp_path, values)
            for path in (tmp_path / "masks").iterdir():
                date = time.time() - chance.uniform(0, 1e6)
                os.utime(path, (date, date))
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        record = out / "annotations" / "conversion.json"
        before = record.stat().st_mtime_ns if record.exists() else 0
        while process.poll() is None and (
            not record.exists() or record.stat().st_mtime_ns == before
        ):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        colors = {COLORS[name]: name for name in order}
        convert_rgb_masks(tmp_path / "photos", tmp_path / "masks", out, colors=colors, workers=0)
        ids = {COLORS[name][0]: k for k, name in enumerate(order)}
        for k, value in enumerate(values):
            found = np.unique(read_label(out / "annotations" / f"{k:02}.png"))
            assert found.tolist() == [ids[value]], (attempt, k)
