"""The report of a real run folder: scenes, a network, its evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cgrseg.config import load_config
from cgrseg.data.synthetic import SYNTHETIC_CLASSES, write_dataset
from cgrseg.datasets import get_spec
from cgrseg.errors import DataError
from cgrseg.evaluation import evaluate
from cgrseg.inference import Predictor, TorchBackend, segment
from cgrseg.models import CGRSeg, create_model
from cgrseg.reporting import compare_runs, report_on, write_report, write_run_report
from cgrseg.reporting import run_report as run_report_module
from cgrseg.reporting.records import ReportInput, Sample
from cgrseg.reporting.report_files import TABLES, ReportFiles, check_targets
from tests.golden_weights import set_golden_weights


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


def test_pictures_are_those_that_were_evaluated(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = get_spec("camvid")
    model = CGRSeg("cgrseg_t", 11, classes=spec.classes, palette=spec.palette)
    set_golden_weights(model)
    model.save_pretrained(tmp_path / "weights")
    settings = {
        "data.root": str(shared_data / "camvid"),
        "data.workers": 0,
        "work_dir": str(tmp_path / "run"),
        "test.resize": "keep_ratio",
        "test.scale": [64, 48],
    }
    config = load_config("cgrseg-t_camvid", settings)
    evaluate(config, tmp_path / "weights", split="test", limit=2, device="cpu", progress=False)
    (tmp_path / "run" / "config.json").write_text(
        # What the run has says nothing of what the evaluation was asked for.
        load_config("cgrseg-t_camvid", {**settings, "test.scale": [96, 96]}).model_dump_json()
    )
    shown: list[Sample] = []

    def watch(path: Path, report: ReportInput) -> ReportFiles:
        shown.extend(report.samples)
        return write_report(path, report)

    monkeypatch.setattr(run_report_module, "write_report", watch)
    files = report_on(tmp_path / "run", device="cpu")
    assert files.html == tmp_path / "run" / "report_test_first2.html"
    assert len(shown) == 2
    for sample in shown:
        expected = segment(TorchBackend(model.eval()), sample.image, config.test).labels
        assert np.array_equal(sample.prediction, expected)
    written = files.html.read_bytes()
    with pytest.raises(DataError, match="it exists already"):
        report_on(tmp_path / "run", device="cpu")
    # Another network would show pictures that the numbers do not belong to.
    with torch.no_grad():
        model.get_parameter("decode_head.conv_seg.bias").add_(torch.arange(11.0))
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="it has other weights"):
        report_on(tmp_path / "run", checkpoint=tmp_path / "other", device="cpu", overwrite=True)
    assert files.html.read_bytes() == written
    # Of the file that is named and the one beside the evaluation, that of the same weights counts.
    (tmp_path / "weights").rename(tmp_path / "run" / "weights")
    (tmp_path / "other").rename(tmp_path / "weights")
    shown.clear()
    report_on(tmp_path / "run", device="cpu", overwrite=True)
    assert len(shown) == 2
    # With the same weights a picture that comes out otherwise is left out, not the page.
    source = tmp_path / "run" / "evaluation_test_first2.json"
    evaluation = json.loads(source.read_text(encoding="utf-8"))
    true = evaluation["per_image"][0]["aAcc"]
    evaluation["per_image"][0]["aAcc"] = true + 0.2
    source.write_text(json.dumps(evaluation), encoding="utf-8")
    shown.clear()
    files = report_on(tmp_path / "run", device="cpu", overwrite=True)
    assert [sample.stem for sample in shown] == [evaluation["per_image"][1]["image"]]
    page = files.html.read_text(encoding="utf-8")
    assert f"{evaluation['per_image'][0]['image']} is not shown: " in page
    del evaluation["settings"]["weights"]
    source.write_text(json.dumps(evaluation), encoding="utf-8")
    with pytest.raises(DataError, match="in the evaluation it was"):
        best = tmp_path / "run" / "weights"
        report_on(tmp_path / "run", checkpoint=best, device="cpu", overwrite=True)
    # Without data or checkpoint the page has no images, but all numbers.
    (tmp_path / "weights").rename(tmp_path / "other")
    (tmp_path / "run" / "weights").rename(tmp_path / "gone")
    files = report_on(tmp_path / "run", device="cpu", overwrite=True)
    page = files.html.read_text(encoding="utf-8")
    assert 'alt="prediction"' not in page
    assert "the report has no images (cgrseg report RUN --checkpoint CHECKPOINT names one)" in page
    # Its own report may be replaced unasked, no other file.
    check_targets(files.html, TABLES, own=config.name)
    files.json.write_text("mine")
    with pytest.raises(DataError, match="it exists already"):
        check_targets(files.html, TABLES, own=config.name)


def test_a_result_chooses_no_python_file_to_run(run_folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = run_folder / "evil.py"
    script.write_text(f"open({str(ran)!r}, 'w').close()\nconfig = {{}}\n")
    source = run_folder / "evaluation.json"
    evaluation = json.loads(source.read_text(encoding="utf-8"))
    evaluation["settings"]["run"] = str(script)
    source.write_text(json.dumps(evaluation), encoding="utf-8")
    page = report_on(run_folder, device="cpu").html.read_text(encoding="utf-8")
    assert not ran.exists()
    assert "no preset is called" in page
