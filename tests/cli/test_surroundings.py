"""Commands in odd surroundings: terminals, streams, plot backends, limits of the machine."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import cgrseg
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png

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
    dumb = run("data", "list", NO_COLOR="1", TERM="dumb")
    ascii_only = run("data", "list", PYTHONIOENCODING="ascii")
    for done in (dumb, ascii_only):
        assert (done.returncode, done.stderr) == (0, "")
        assert "voc2012" in done.stdout
    assert ascii_only.stdout.isascii()


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
from cgrseg.visual.plots import class_histogram
chart = io.BytesIO()
class_histogram(["sky"], [5]).savefig(chart, format="png")
assert chart.getvalue().startswith(b"\\x89PNG")
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


def test_notices_are_log_lines() -> None:
    """`python -W error` turns Python warnings into traces."""
    package = Path(cgrseg.__file__).parent
    for path in package.rglob("*.py"):
        assert "warnings.warn(" not in path.read_text("utf-8"), path


_SMALL = (
    "train.precision=fp32 schedule.max_iters=2 schedule.warmup_iters=0 train.eval_interval=2 "
    "train.batch_size=2 data.workers=0 augment.scale=128x96 augment.crop_size=64x64 "
    "test.scale=128x96 data.val_fraction=0.5"
)


@pytest.mark.slow
def test_warnings_as_errors_end_no_training(dataset: Path, tmp_path: Path) -> None:
    settings = [f"data.root={dataset}", *_SMALL.split()]
    done = run(
        *("train", "cgrseg-t_custom", "--work-dir", tmp_path / "run", *settings),
        flags=("-W", "error"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    assert "warning: no GPU was found" in done.stderr
    assert (tmp_path / "run" / "best.pth").is_file()


def limit(kind: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (amount, amount))


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [300, 800])
def test_little_memory_is_said(megabytes: int, checkpoint: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", np.zeros((32, 32, 3), np.uint8))
    done = run(
        *("predict", checkpoint, tmp_path / "a.jpg", "--out", tmp_path / "out"),
        limits=limit(resource.RLIMIT_AS, megabytes << 20),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 2, done.stderr
    assert "memory ran out" in done.stderr
    assert "Traceback" not in done.stderr
    assert "damaged" not in done.stderr


_DROP_FROM_BOUNDING_SET = 24
_OVERRIDES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root enters every folder


def without_rights() -> None:
    """Let permissions count for root, too, from the next program on."""
    if os.getuid() == 0:
        for capability in _OVERRIDES:
            ctypes.CDLL(None).prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


def permissions_count(folder: Path) -> bool:
    done = subprocess.run(["ls", folder], preexec_fn=without_rights, capture_output=True)
    return done.returncode != 0


@pytest.mark.parametrize("command", ["config", "data", "custom", "browse", "checkpoint"])
def test_what_may_not_be_entered_is_named(command: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "config.json").write_text("{}")
    write_image(closed / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    arguments = {
        "config": ["train", closed / "config.json"],
        "data": ["data", "check", closed],
        "custom": ["data", "check", closed, "--dataset", "custom"],
        "browse": ["data", "browse", closed, "--out", tmp_path / "page.html"],
        "checkpoint": ["info", closed / "a.pth"],
    }[command]
    closed.chmod(0)
    try:
        if not permissions_count(closed):
            pytest.skip("permissions do not count for this user")
        done = run(*arguments, limits=without_rights, cwd=tmp_path)
    finally:
        closed.chmod(0o700)
    assert done.returncode == 2, done.stderr
    assert "closed" in done.stderr
    assert "Traceback" not in done.stderr


_FINDS = """
import sys
from cgrseg.data.image_files import read_image
from cgrseg.errors import DataError
from cgrseg.inference.image_sources import find_images
for image in find_images(sys.argv[1]):
    try:
        read_image(image.path)
        print(image.name)
    except DataError as error:
        print(str(error).splitlines()[0])
"""


def test_a_closed_subfolder_is_named_and_the_rest_is_done(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_image(closed / "b.png", np.zeros((8, 8, 3), np.uint8))
    closed.chmod(0)
    try:
        if not permissions_count(closed):
            pytest.skip("permissions do not count for this user")
        command = [sys.executable, "-c", _FINDS, str(tmp_path)]
        done = subprocess.run(command, preexec_fn=without_rights, capture_output=True, text=True)
    finally:
        closed.chmod(0o700)
    first, second = done.stdout.splitlines()
    assert first == "a"
    assert second.startswith(str(closed)) and "may not be entered" in second


def test_no_place_to_write_costs_no_result(tmp_path_factory: pytest.TempPathFactory) -> None:
    none = "/nonexistent"
    done = run("data", "list", TMPDIR=none, HOME=none, XDG_CACHE_HOME=none, MPLCONFIGDIR=none)
    assert (done.returncode, done.stderr) == (0, "")
    assert "voc2012" in done.stdout
    done = run("data", "list", HOME=None, TMPDIR=None)
    assert (done.returncode, done.stderr) == (0, "")
