"""`cgrseg demo`, as small as it can be: every step is real, only the training is short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import SMALL, Run


@pytest.mark.slow
def test_demo_leaves_a_report_and_can_be_started_again(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = ("demo", *SMALL, "--out", out, "--train-scenes", 8, "--val-scenes", 2)
    result = run(*command, "--device", "cpu")
    assert result.exit_code == 0, result.output
    report = out / "report.html"
    assert str(report) in result.stdout
    page = report.read_text(encoding="utf-8")
    for part in ("color classifier", "balloon", "SYN_val_00000001", "data:image/"):
        assert part in page
    scores = json.loads((out / "evaluation.json").read_text())
    assert f"mIoU on held-out scenes: {100 * scores['scores']['mIoU']:.1f} %" in result.stdout
    assert "color alone gets:" in result.stdout
    assert len(list((out / "predictions" / "labels").glob("*.png"))) == 2

    weights = (out / "best.pth").read_bytes()
    again = run(*command, "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert (out / "best.pth").read_bytes() == weights
    assert "finished" in again.output
