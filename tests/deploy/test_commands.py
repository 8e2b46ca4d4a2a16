"""`cgrseg export` and `cgrseg predict` on its files, as a person calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from typer.testing import CliRunner, Result

from cgrseg.cli.main import app
from cgrseg.data.label_files import read_label
from cgrseg.formats import describe
from tests.inference.fixtures import photo

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run() -> Run:
    def call(*arguments: str | Path) -> Result:
        runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
        return runner.invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="module")
def exported(run: Run, checkpoint: Path) -> Path:
    """Beside its checkpoint, as without --out."""
    result = run("export", checkpoint, "--format", "pt2", "--size", "64x96", "--batch-size", "1")
    assert result.exit_code == 0, result.output
    assert "written:" in result.stdout and "small.pt2" in result.stdout
    assert "1 x 64x96: logits differ by" in result.stderr
    path = checkpoint.with_suffix(".pt2")
    assert describe(path).sizes == [(64, 96)] and describe(path).batch == 1
    return path


@pytest.fixture()
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    assert cv2.imwrite(str(path), photo(128, 192)[:, :, ::-1])
    return path


def test_predict_takes_the_file_like_its_checkpoint(
    run: Run, exported: Path, checkpoint: Path, picture: Path, tmp_path: Path
) -> None:
    found = []
    for model in (exported, checkpoint):
        out = tmp_path / model.suffix[1:]
        result = run("predict", model, picture, "--out", out, "--device", "cpu")
        assert result.exit_code == 0, result.output
        found.append(read_label(out / "labels" / "street.png"))
    assert (found[0] == found[1]).mean() > 0.999


def test_predict_on_a_machine_with_a_gpu(
    run: Run, exported: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file runs on the CPU; only asking for the GPU by name is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    result = run("predict", exported, picture, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "labels" / "street.png").is_file()
    refused = run("predict", exported, picture, "--out", tmp_path / "other", "--device", "cuda")
    assert refused.exit_code == 2 and "which is run on the CPU" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--calibration-images", "4"), "--calibration-images: given without --int8"),
        (("--max-drop", "1"), "--max-drop: given without --int8"),
        (("--limit", "3", "--split", "val"), "--split, --limit: given without --int8"),
        (("--format", "openvino", "--opset", "18"), "--opset: 18, with the format openvino"),
        (("--int8", "--opset", "20"), "--int8: --opset 20"),
        (("--int8", "--format", "pt2"), "--int8: --format pt2"),
        (("--int8", "--size", "64x65"), "round up: 64x96"),
        (("--int8", "--precision", "fp16"), "--precision: fp16, with --int8"),
        (("--precision", "fp16", "--format", "pt2"), "--precision: fp16, with the format pt2"),
        (
            ("--precision", "half"),
            "fp32; or fp16, with the format litert or ncnn or onnx or openvino",
        ),
        (("--format", "openvino", "--out", "model.XML"), "for example model.xml"),
        (("--batch-size", "0"), "--batch-size: '0': "),
        (("--size", "64x"), "--size: '64x'"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    run: Run, checkpoint: Path, arguments: tuple[str, ...], part: str
) -> None:
    before = sorted(checkpoint.parent.iterdir())
    result = run("export", checkpoint, *arguments)
    assert result.exit_code == 2 and part in result.stderr, result.output
    assert "Traceback" not in result.output and sorted(checkpoint.parent.iterdir()) == before


def test_compile_is_refused_and_help_names_exported_files(
    run: Run, exported: Path, picture: Path, tmp_path: Path
) -> None:
    result = run("predict", exported, picture, "--out", tmp_path / "out", "--compile")
    assert result.exit_code == 2 and "compile: given for" in result.stderr
    told = run("predict", "--help").stdout
    assert "cgrseg export" in told and ".onnx" in told
