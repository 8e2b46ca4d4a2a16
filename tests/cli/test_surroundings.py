"""Commands in odd surroundings: terminals, streams, plot backends, limits of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import cgrseg
from cgrseg.data.image_io import write_image, write_label_png

NOTEBOOK = "module://matplotlib_inline_that_is_not_installed.backend_inline"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = cgrseg.create_model("cgrseg_t", num_classes=2, classes=("sky", "road"))
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"variant": "cgrseg_t"}}, path)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = np.zeros((96, 128), np.uint8)
    labels[40:] = 1
    for k in range(4):
        image = random.integers(0, 255, (96, 128, 3)).astype(np.uint8)
        write_image(root / "images" / f"{k}.jpg", image)
        write_label_png(root / "annotations" / f"{k}.png", labels, [(0, 0, 0), (9, 9, 9)])
    (root / "classes.txt").write_text("sky\nroad\n")
    return root


def run(
    *arguments: object,
    flags: tuple[str, ...] = (),
    limits: Callable[[], None] | None = None,
    cwd: Path | None = None,
    **variables: str | None,
) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PYTHONPATH": str(Path(cgrseg.__file__).parents[1])}
    surroundings |= {name: value for name, value in variables.items() if value is not None}
    for name in [name for name, value in variables.items() if value is None]:
        surroundings.pop(name, None)
    return subprocess.run(
        [sys.executable, *flags, "-m", "cgrseg", *map(str, arguments)],
        env=surroundings,
        capture_output=True,
        text=True,
        preexec_fn=limits,
        cwd=cwd,
    )


@pytest.mark.parametrize("columns", ["0", "1", "20", "9" * 30, "many"])
def test_tables_keep_a_least_width(columns: str) -> None:
    done = run("data", "list", COLUMNS=columns)
    assert done.returncode == 0
    longest = max(map(len, done.stdout.splitlines()))
    assert 50 < longest <= 1000
    assert "voc2012" in done.stdout


def test_help_is_printed_without_columns() -> None:
    assert "--work-dir" in run("train", "--help", COLUMNS="0").stdout


def test_terminals_and_encodings() -> None:
    for variables in ({"NO_COLOR": "1", "TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}):
        done = run("data", "list", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert "voc2012" in done.stdout
        assert done.stdout.isascii() or "PYTHONIOENCODING" not in variables


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["nonsense", NOTEBOOK])
def test_plot_backends_have_no_say_in_commands(
    backend: str, checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    chart = tmp_path / "chart.png"
    checked = run("data", "check", dataset, "--plot", chart, MPLBACKEND=backend)
    assert checked.returncode == 0, checked.stderr
    assert chart.read_bytes().startswith(b"\x89PNG")
    labelled = run(
        "predict", checkpoint, dataset / "images", "--out", tmp_path / "out", MPLBACKEND=backend
    )
    assert labelled.returncode == 0, labelled.stderr
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 4


CHART = """
import io, os, sys
from cgrseg.visual.plots import class_bars, figure_png
assert figure_png(class_bars(["sky"], [0.5])).startswith(b"\\x89PNG")
import matplotlib, cgrseg.training
print(os.environ["MPLBACKEND"], matplotlib.rcParams._get("backend"), sys.argv)
"""


@pytest.mark.parametrize(("backend", "kept"), [(NOTEBOOK, None), ("svg", "svg")])
def test_plot_backends_have_no_say_in_files(backend: str, kept: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHART],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    variable, chosen = done.stdout.split()[:2]
    assert variable == backend, "it is the program's own choice"
    assert kept is None or chosen == kept


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cgrseg", "data", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
