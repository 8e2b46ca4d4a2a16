"""A wrong id that only a loader's worker process meets, as a person at a terminal sees it."""

from __future__ import annotations

import numpy as np
from typer.testing import CliRunner

from cgrseg.cli.main import app
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.data.synthetic import write_dataset
from cgrseg.errors import CGRSegError, DataError


def test_a_wrong_id_in_a_worker_prints_its_message_only(tmp_path):
    root = write_dataset(tmp_path / "data", train=2, val=1, size=(64, 64), workers=1)
    # The first one is read before the training starts, to see that there is something to learn.
    for label in sorted((root / "annotations" / "training").glob("*.png"))[1:]:
        write_label_png(label, np.full_like(read_label(label), 77), [(0, 0, 0)])
    settings = [
        "augment.scale=[64, 64]",
        "augment.crop_size=[64, 64]",
        "train.batch_size=2",
        "schedule.max_iters=1",
        "schedule.warmup_iters=0",
        "data.check=false",
        "data.workers=1",
        "train.precision=fp32",
    ]
    where = ["--data-root", str(root), "--work-dir", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
        app, ["train", "cgrseg-t_synthetic", *settings, *where]
    )
    assert result.exit_code == 2, result.output
    assert "ids outside the class list: 77 (100.00 % of pixels)" in result.output
    assert "annotations/training/" in result.output
    assert "what to do: " in result.output
    assert "Traceback" not in result.output
    assert "worker process" not in result.output


def test_only_what_pytorch_wraps_is_cut():
    wrapped = (
        "Caught DataError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "x.py", line 1, in y\n'
        "cgrseg.errors.DataError: a.png: ids\n  expected: others\n  what to do: look\n"
    )
    assert str(DataError(wrapped)) == "a.png: ids\n  expected: others\n  what to do: look"
    plain = "Caught by surprise: a.png"
    assert str(DataError(plain)) == plain
    assert str(CGRSegError()) == ""
