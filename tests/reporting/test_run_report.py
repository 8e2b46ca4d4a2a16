"""The report of a real run's folder: scenes, a network, its evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cgrseg.config import load_config
from cgrseg.data.synthetic import SYNTHETIC_CLASSES, write_dataset
from cgrseg.evaluation import evaluate
from cgrseg.inference import Predictor, TorchBackend
from cgrseg.models import create_model
from cgrseg.reporting import compare_runs, write_run_report


@pytest.mark.slow
def test_report_and_comparison_of_two_real_evaluations(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=1, val=5, size=(64, 96))
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / f"run{seed}"
        config = load_config(
            "cgrseg-t_synthetic",
            {"data.root": str(data), "data.workers": 0, "work_dir": str(folder)},
        )
        model = create_model("cgrseg_t", len(SYNTHETIC_CLASSES)).eval()
        result = evaluate(config, model, device="cpu", progress=False)
        (folder / "scores.csv").write_text("iteration,mIoU\n10,0.25\n", encoding="utf-8")
        predictor = Predictor(
            TorchBackend(model, torch.device("cpu")), config.test, SYNTHETIC_CLASSES
        )
        page = write_run_report(folder, config, result, predictor, notes={"mIoU of nothing": 0.0})
        folders.append(folder)

    source = page.read_text(encoding="utf-8")
    for expected in ("mIoU of nothing", "Worst images", "schedule.max_iters", "Score, %"):
        assert expected in source, expected
    assert len(re.findall('alt="prediction"', source)) == 5  # all images, none twice
    for k in range(1, 6):
        assert f"SYN_val_{k:08d}" in source
    numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert numbers["evaluation"]["scores"]["mIoU"] == pytest.approx(result.scores.mean_iou)
    assert numbers["config"]["data"]["root"] == str(data)

    (change,) = compare_runs(folders).differences
    assert change.shared_images == 5 and change.interval is not None
    first = json.loads((folders[0] / "evaluation.json").read_text(encoding="utf-8"))
    expected_change = result.scores.mean_iou - first["scores"]["mIoU"]
    assert change.miou == pytest.approx(expected_change)
