"""`cgrseg autolabel`: images without labels become a dataset that trains with the labeled one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.inference import Predictor
from cgrseg.inference.confidence import STEPS

from .conftest import SMALL, Run


@pytest.fixture(scope="module")
def teacher(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose network is as unsure in places as a trained one."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    folder.mkdir()
    shutil.copy(trained / "config.json", folder)
    state = torch.load(trained / "best.pth", weights_only=True)
    for part in ("weight", "bias"):
        state["state_dict"][f"decode_head.conv_seg.{part}"] *= 300
    torch.save(state, folder / "best.pth")
    return folder


@pytest.fixture(scope="module")
def unlabeled(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the embedded data without their labels, one in a subfolder."""
    folder = tmp_path_factory.mktemp("unlabeled") / "photos"
    (folder / "deeper").mkdir(parents=True)
    images = sorted((scenes / "images" / "training").iterdir())
    for number, image in enumerate(images):
        shutil.copy(image, folder / ("deeper" if number == 0 else "") / image.name)
    return folder


def test_the_dataset_is_checked_and_trains_with_the_labeled_one(
    run: Run, teacher: Path, scenes: Path, unlabeled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "auto"
    words = ("autolabel", teacher / "best.pth", unlabeled, "--out", out, "--device", "cpu")
    result = run(*words, "--keep", "0.5")
    assert result.exit_code == 0, result.output
    assert f"next: cgrseg train {teacher} work_dir={teacher}_auto data.extra={out}" in result.output
    report = json.loads((out / "autolabel.json").read_text())
    predictor = Predictor.from_pretrained(teacher / "best.pth", "cpu")
    confident = {one["name"]: one for one in report["classes"]}
    kept = predicted = 0
    for image in sorted(unlabeled.rglob("*.*")):
        name = image.relative_to(unlabeled).with_suffix("")
        found = predictor(image, confidence=True)
        least = np.array([confident[each]["threshold"] or 2 for each in predictor.classes])
        expected = np.where(found.confidence >= least.astype(np.float32)[found.labels], 0, 255)
        stored = read_label(out / "annotations" / f"{name}.png")
        assert np.array_equal(stored == 255, expected == 255)
        assert np.array_equal(stored[stored != 255], found.labels[stored != 255])
        assert (out / "images" / name).with_suffix(image.suffix).read_bytes() == image.read_bytes()
        kept, predicted = kept + int((stored != 255).sum()), predicted + stored.size
    assert report["share_kept"] == pytest.approx(kept / predicted)
    assert sum(one["kept"] for one in report["classes"]) == kept
    assert all(one["kept"] >= 0.5 * one["predicted"] for one in report["classes"])
    assert report["share_kept"] < 0.7
    assert run("data", "check", out).exit_code == 0
    both = run(
        "train", "cgrseg-t_synthetic", *SMALL, f"data.root={scenes}", f"data.extra={out}:0.5",
        "--work-dir", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert both.exit_code == 0, both.output
    assert (
        f"further training sets, each with its samples per sample of data.root: {out} 0.5"
        in (tmp_path / "run" / "train.log").read_text()
    )


def test_other_thresholds_need_a_request_and_no_network(
    run: Run, teacher: Path, unlabeled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "auto"
    words = ("autolabel", teacher / "best.pth", unlabeled, "--out", out, "--device", "cpu")
    assert run(*words, "--keep", "1").exit_code == 0
    files = sorted((out / "annotations").rglob("*.png"))
    predictions = sorted((out / "predictions").rglob("*.png"))
    times = [path.stat().st_mtime_ns for path in [*files, *predictions]]
    assert run(*words, "--keep", "1").exit_code == 0
    assert [path.stat().st_mtime_ns for path in [*files, *predictions]] == times
    refused = run(*words, "--keep", "0.3")
    assert refused.exit_code == 2
    assert "4 label maps of other thresholds or predictions" in refused.output
    assert [path.stat().st_mtime_ns for path in files] == times[:4]
    write_label_png(files[0], np.full((64, 64), 3, np.uint8), [(0, 0, 0)])  # a corrected one
    again = run(*words, "--keep", "0.3", "--overwrite")
    assert again.exit_code == 0, again.output
    assert "1 with labels of another program, which were left alone" in again.output
    report = json.loads((out / "autolabel.json").read_text())
    assert report["labeled_images"] == 3 and "3 images labeled" in again.output
    made = [read_label(path) for path in files[1:]]
    assert sum(one["predicted"] for one in report["classes"]) == 3 * 64 * 64
    for k, one in enumerate(report["classes"]):
        assert one["kept"] == sum(int((labels == k).sum()) for labels in made)
        assert one["images"] == sum(bool((labels == k).any()) for labels in made)
    assert (read_label(files[0]) == 3).all()
    assert [path.stat().st_mtime_ns for path in predictions] == times[4:]
    assert all(
        path.stat().st_mtime_ns > time for path, time in zip(files[1:], times[1:4], strict=True)
    )


def test_images_without_a_confident_pixel_are_left_out(
    run: Run, teacher: Path, unlabeled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "auto"
    words = ("autolabel", teacher / "best.pth", unlabeled, "--out", out, "--device", "cpu")
    assert run(*words, "--keep", "1").exit_code == 0
    assert len(list((out / "images").rglob("*.*"))) == 4
    result = run(*words, "--confidence", "1", "--overwrite")
    assert result.exit_code == 0, result.output
    assert "0 images labeled, 0.0% of their pixels; 4 left out" in result.output
    assert not list((out / "images").rglob("*.*"))
    assert not list((out / "annotations").rglob("*.png"))
    assert len(list(unlabeled.rglob("*.*"))) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--confidence", "1.5"], "a number from 0 to 1, or CLASS=NUMBER"),
        (["--keep", "tre=0.5"], "a class of the network: sky"),
        (["--confidence", "half"], "'half'"),
    ],
)
def test_impossible_thresholds(
    run: Run, teacher: Path, unlabeled: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    words = ("autolabel", teacher / "best.pth", unlabeled, "--out", tmp_path / "auto")
    result = run(*words, *options)
    assert result.exit_code == 2
    assert told in result.output
    assert not (tmp_path / "auto").exists()


def test_a_dataset_of_other_classes_is_not_mixed(
    run: Run, teacher: Path, unlabeled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "auto"
    out.mkdir()
    (out / "classes.txt").write_text("a\nb\n")
    result = run("autolabel", teacher / "best.pth", unlabeled, "--out", out)
    assert result.exit_code == 2
    assert "a dataset of other classes" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["classes.txt"]


def test_steps_hold_round_confidences() -> None:
    assert {0.5, 0.75, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999} <= set(STEPS.tolist())
    assert (np.diff(STEPS.astype(np.float32)) > 0).all()
    assert len(STEPS) <= 255
