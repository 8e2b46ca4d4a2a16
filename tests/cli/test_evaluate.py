"""`cgrseg evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cgrseg.config import load_config
from cgrseg.evaluation import evaluate
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.models import load_model
from cgrseg.precision import choose_precision

from .conftest import Run


def test_checkpoint_alone_tells_its_dataset(run: Run, trained: Path) -> None:
    result = run("evaluate", trained / "best.pth", "--device", "cpu")
    assert result.exit_code == 0, result.output
    written = json.loads((trained / "evaluation.json").read_text())
    assert written["images"] == 2
    direct = evaluate(load_config(trained), trained / "best.pth", device="cpu", progress=False)
    assert written["scores"]["mIoU"] == pytest.approx(direct.scores.mean_iou, abs=1e-12)
    assert f"mIoU {100 * direct.scores.mean_iou:.2f}" in result.stdout
    for name in direct.classes:
        assert name in result.stdout


def test_settings_and_options_reach_the_evaluation(run: Run, trained: Path, tmp_path: Path) -> None:
    result = run(
        *("evaluate", trained / "best.pth", "test.flip=true", "--limit", 1, "--split", "train"),
        *("--out", tmp_path / "scores.json", "--show-dir", tmp_path / "shown"),
        *("--metric", "mBoundaryIoU", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["settings"]["test"]["flip"] is True
    assert written["settings"]["split"] == "train"
    assert written["images"] == 1
    assert "mBoundaryIoU" in written["scores"]
    assert len([path for path in (tmp_path / "shown").rglob("*") if path.is_file()]) == 1


def test_a_chosen_precision_is_printed_and_stored_with_its_reason(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    command = ("evaluate", trained / "best.pth", "--limit", 1, "--device", "cpu", "--precision")
    result = run(*command, "auto", "--out", tmp_path / "auto.json")
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "auto.json").read_text())["settings"]
    reason = choose_precision(torch.device("cpu")).reason
    assert (stored["precision"], stored["precision_reason"]) == ("fp32", reason)
    assert f"precision: fp32 ({reason})" in result.stderr
    given = run(*command, "fp32", "--out", tmp_path / "fp32.json")
    assert "precision:" not in given.stderr
    assert "precision_reason" not in json.loads((tmp_path / "fp32.json").read_text())["settings"]


def test_compiled_evaluation_counts_alike(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images are too few to compile: the folded network runs, chosen by the same option."""
    seen: list[int] = []
    logits = CompiledBackend.logits

    def watched(self: CompiledBackend, batch: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return logits(self, batch)

    monkeypatch.setattr(CompiledBackend, "logits", watched)
    before = torch.get_num_threads(), cv2.getNumThreads()
    plain = run("evaluate", trained / "best.pth", "--device", "cpu", "--out", tmp_path / "a.json")
    assert plain.exit_code == 0 and not seen
    try:
        fast = run(
            *("evaluate", trained / "best.pth", "--device", "cpu", "--out", tmp_path / "b.json"),
            *("--compile", "--threads", before[0] + 1),
        )
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert fast.exit_code == 0, fast.output
    assert seen == [before[0] + 1] * 2
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert not first["settings"]["compile"] and second["settings"]["compile"]
    for name, value in first["scores"].items():
        assert second["scores"][name] == pytest.approx(value, abs=1e-3), name


def test_checkpoint_without_its_run_asks_for_a_config(
    run: Run, trained: Path, scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    load_model(trained / "best.pth").save_pretrained(folder)
    refused = run("evaluate", folder)
    assert refused.exit_code == 2
    assert f"cgrseg evaluate cgrseg-t_ade20k_160k {folder}" in refused.stderr
    given = run(
        *("evaluate", "cgrseg-t_synthetic", folder, f"work_dir={tmp_path / 'out'}"),
        *("--data-root", scenes, "--device", "cpu", "data.workers=0"),
    )
    assert given.exit_code == 0, given.output
    assert (tmp_path / "out" / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--precision", "fp8"], "fp32, bf16 or fp16"),
        (["--precision", "fp8", "--compile"], "fp32, bf16 or fp16"),
        (["b.pth", "c.pth"], "3 names beside the settings"),
        (["test.flips=true"], "did you mean test.flip?"),
        (["--metric", "mIuO"], "mIuO"),
    ],
)
def test_mistakes_are_messages(run: Run, trained: Path, arguments: list[str], part: str) -> None:
    result = run("evaluate", trained / "best.pth", "--device", "cpu", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr


def test_config_of_another_dataset_is_used_as_named(run: Run, trained: Path) -> None:
    result = run("evaluate", "cgrseg-t_ade20k_160k", trained / "best.pth")
    assert result.exit_code == 2
    assert "ADEChallengeData2016" in result.stderr


def test_missing_checkpoint_is_a_message(run: Run) -> None:
    result = run("evaluate", "nothing.pth")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: nothing.pth: ")


def test_report_of_a_run_and_submission(
    run: Run, trained: Path, scenes: Path, tmp_path: Path
) -> None:
    work = f"work_dir={tmp_path / 'out'}"
    page = tmp_path / "out" / "report.html"
    # What somebody else has written is not replaced, and that is said before the work.
    page.parent.mkdir()
    page.write_text("mine")
    result = run("evaluate", trained / "best.pth", work, "--report", "--device", "cpu")
    assert result.exit_code == 2 and "it exists already" in result.stderr
    assert [file.name for file in page.parent.iterdir()] == ["report.html"]
    page.unlink()
    result = run("evaluate", trained / "best.pth", work, "--report", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "Worst images" in page.read_text(encoding="utf-8")
    assert {p.name for p in page.parent.glob("report*")} == {
        "report.html",
        "report.json",
        "report_classes.csv",
        "report_confusion.csv",
        "report_images.csv",
    }
    refused = run("report", tmp_path / "out", "--data-root", scenes)
    assert refused.exit_code == 2 and "it exists already" in refused.stderr
    # No config lies in this folder: the shipped one looks for the data elsewhere.
    again = run("report", tmp_path / "out", "--overwrite", "--device", "cpu")
    assert again.exit_code == 0 and f"report: {page}" in again.stdout
    assert "the report has no images" in again.stderr
    assert "Worst images" not in page.read_text(encoding="utf-8")
    options = ("--overwrite", "--data-root", scenes, "--device", "cpu")
    assert run("report", tmp_path / "out", *options).exit_code == 0
    assert "Worst images" in page.read_text(encoding="utf-8")
    written = run(
        *("evaluate", trained / "best.pth", "--format-only", "--out", tmp_path / "files"),
        *("--device", "cpu"),
    )
    assert written.exit_code == 0, written.output
    assert len(list((tmp_path / "files").glob("*.png"))) == 2
    assert "2 label files" in written.stdout


def changed_copy(checkpoint: Path, target: Path, **meta: object) -> Path:
    """A checkpoint with other entries in its `meta`."""
    content = torch.load(checkpoint, weights_only=True)
    content["meta"].update(meta)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, target)
    return target


@pytest.mark.parametrize("stored", ["absolute", "name"])
def test_a_checkpoint_does_not_choose_where_results_go(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = torch.load(trained / "best.pth", weights_only=True)["meta"]["config"]
    victim = tmp_path / "victim"
    victim.mkdir()
    if stored == "absolute":
        settings["work_dir"] = str(victim)
    else:
        settings.update(work_dir=None, name="elsewhere")
    foreign = changed_copy(trained / "best.pth", tmp_path / "foreign" / "x.pth", config=settings)
    result = run("evaluate", foreign, "--device", "cpu", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "foreign" / "evaluation_first1.json").is_file()
    assert not any(victim.iterdir()) and not (tmp_path / "work_dirs").exists()
    mine = tmp_path / "mine"
    result = run("evaluate", foreign, "--device", "cpu", "--limit", 1, f"work_dir={mine}")
    assert result.exit_code == 0, result.output
    assert (mine / "evaluation_first1.json").is_file()


def test_a_run_name_that_leads_out_of_its_folder_is_refused(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    settings = torch.load(trained / "best.pth", weights_only=True)["meta"]["config"]
    settings.update(work_dir=None, name="../../victim")
    foreign = changed_copy(trained / "best.pth", tmp_path / "x.pth", config=settings)
    result = run("evaluate", foreign, "--device", "cpu", "--limit", 1)
    assert result.exit_code == 2
    assert "name: '../../victim'" in result.stderr


def test_a_wrong_number_of_names_is_said_by_every_command(
    run: Run, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = torch.load(trained / "best.pth", weights_only=True)["meta"]["classes"]
    short = changed_copy(trained / "best.pth", tmp_path / "x.pth", classes=names[:-1])
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((64, 64, 3), np.uint8))
    for command in (
        ("evaluate", short, "--device", "cpu", "--limit", 1),
        ("predict", short, image, "--device", "cpu", "--out", tmp_path / "out"),
        ("info", short),
    ):
        caplog.clear()
        result = run(*command)
        assert result.exit_code == 0, result.output
        told = f"it holds {len(names) - 1} class names for {len(names)} classes"
        assert told in caplog.text, command
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["classes"] == [f"class {k}" for k in range(len(names))]


def test_results_that_cannot_be_written_stop_before_the_work(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also for a superuser, who may write anywhere but on a read-only file system.
    writable = os.access

    target = tmp_path / "read-only"
    target.mkdir()

    def access(path: Path, mode: int, **options: bool) -> bool:
        return Path(path) != target and writable(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    result = run("evaluate", trained / "best.pth", "--device", "cpu", f"work_dir={target}")
    assert result.exit_code == 2
    assert f"{target}: results cannot be written there ({target} is" in result.stderr
    assert "mIoU" not in result.stdout
