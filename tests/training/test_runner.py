"""Whole trainings on a few images: what they leave behind, and that they repeat exactly."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from cgrseg.config import load_config
from cgrseg.errors import ConfigError, DataError, WeightsError
from cgrseg.models import create_model, load_model
from cgrseg.training.checkpointing import read_training_checkpoint
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.module import TrainingModule
from cgrseg.training.resuming import refuse_other_optimizer
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import _without_effect, train
from tests.training.small_run import differing, small_config, weights_of, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone, with dropout, stochastic depth and averaged weights."""
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    result = train(small_config(dataset, work_dir, train__ema_decay=0.5), device="cpu")
    assert result.iterations == 6 and result.stopped_by is None
    return work_dir


def test_what_a_run_leaves_behind(dataset: Path, tmp_path: Path) -> None:
    config = small_config(
        dataset,
        tmp_path / "run",
        train__evaluate=True,
        train__eval_interval=2,
        schedule__max_iters=3,
    )
    result = train(config, device="cpu")
    names = {path.name for path in result.work_dir.iterdir()}
    assert names == {
        "latest.pth",
        "previous.pth",
        "best.pth",
        "config.json",
        "metrics.csv",
        "scores.csv",
        "tensorboard",
        "train.log",
    }
    assert list((result.work_dir / "tensorboard").glob("events.*"))
    assert json.loads((result.work_dir / "config.json").read_text()) == config.model_dump(
        mode="json"
    )
    # evaluated every second iteration, and after the last
    scores = read_table(result.work_dir / "scores.csv")
    assert [row["iteration"] for row in scores] == ["2", "3"]
    assert result.scores is not None
    assert float(scores[-1]["mIoU"]) == pytest.approx(result.scores.mean_iou, rel=1e-6)
    assert float(scores[-1]["IoU.ground"]) == pytest.approx(float(result.scores.iou[1]), rel=1e-6)
    assert result.metrics["mIoU"] == pytest.approx(result.scores.mean_iou, rel=1e-6)
    rows = read_table(result.work_dir / "metrics.csv")
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    # warm-up over 2 of 3 iterations from 1e-6: factor 1e-6, then 2/3 of about 1/2, then 1/3
    assert [float(row["rate"]) for row in rows] == pytest.approx(
        [1e-9, 1e-3 * (2 / 3) * (1 - 0.5 * (1 - 1e-6)), 1e-3 / 3], rel=1e-6
    )
    # three classes at the start: ln 3 on all but the two ignored rows of 64 (or more by chance)
    assert 0.5 < float(rows[0]["loss"]) < 1.6
    checkpoint = torch.load(result.latest, weights_only=True)
    assert checkpoint["meta"]["iteration"] == 3
    assert checkpoint["meta"]["classes"] == ["sky", "ground", "thing"]
    assert checkpoint["meta"]["variant"] == "cgrseg_t"
    assert result.best is not None
    best = torch.load(result.best, weights_only=True)
    assert "training" not in best
    highest = max(float(row["mIoU"]) for row in scores)
    assert best["meta"]["mIoU"] == pytest.approx(highest, rel=1e-6)
    assert load_model(result.best).classes == ("sky", "ground", "thing")


def test_same_seed_same_weights_whatever_the_workers(dataset: Path, tmp_path: Path) -> None:
    for name, workers in (("first", 0), ("second", 0), ("workers", 4)):
        train(
            small_config(dataset, tmp_path / name, data__workers=workers, schedule__max_iters=3),
            device="cpu",
        )
    train(
        small_config(dataset, tmp_path / "other", train__seed=8, schedule__max_iters=3),
        device="cpu",
    )
    first = tmp_path / "first" / "latest.pth"
    assert differing(first, tmp_path / "second" / "latest.pth") == []
    assert differing(first, tmp_path / "workers" / "latest.pth") == []
    assert len(differing(first, tmp_path / "other" / "latest.pth")) > 500


def test_sigterm_writes_a_checkpoint_and_the_resumed_run_ends_the_same(
    dataset: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = TrainingModule.finish_iteration

    def finish_and_be_terminated(module: TrainingModule) -> None:
        finish(module)
        if module.iteration == 3:
            signal.raise_signal(signal.SIGTERM)

    config = small_config(dataset, tmp_path / "run", train__ema_decay=0.5)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "finish_iteration", finish_and_be_terminated)
        result = train(config, device="cpu")
    assert result.stopped_by is signal.SIGTERM and result.iterations == 3
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped by SIGTERM after iteration 3" in (tmp_path / "run" / "train.log").read_text()
    assert torch.load(result.latest, weights_only=True)["meta"]["iteration"] == 3

    config.data.workers = 2
    result = train(config, device="cpu", auto_resume=True)
    assert result.iterations == 6 and result.stopped_by is None
    assert differing(result.latest, finished / "latest.pth") == []
    whole, resumed = (
        [
            {key: row[key] for key in ("iteration", "loss", "acc_seg", "rate")}
            for row in read_table(folder / "metrics.csv")
        ]
        for folder in (finished, tmp_path / "run")
    )
    assert [row["iteration"] for row in whole] == [str(number) for number in range(1, 7)]
    assert resumed == whole


def test_double_precision_resumes_exactly(dataset: Path, tmp_path: Path) -> None:
    config = small_config(
        dataset,
        tmp_path / "run",
        train__precision="fp64",
        train__ema_decay=0.5,
        train__checkpoint_interval=2,
        augment__crop_size=[32, 32],
        schedule__max_iters=4,
    )
    whole = train(config, device="cpu").latest.rename(tmp_path / "whole.pth")
    # as if it had been killed after the second iteration
    (tmp_path / "run" / "previous.pth").rename(tmp_path / "run" / "latest.pth")
    result = train(config, device="cpu", auto_resume=True)
    assert read_table(tmp_path / "run" / "metrics.csv")[-2]["iteration"] == "3"
    assert weights_of(result.latest)["decode_head.conv_seg.weight"].dtype == torch.float64
    assert differing(result.latest, whole) == []


def test_predictions_are_shown_in_tensorboard(dataset: Path, tmp_path: Path) -> None:
    config = small_config(
        dataset,
        tmp_path / "run",
        augment__crop_size=[32, 32],
        schedule__max_iters=1,
        train__evaluate=True,
        train__log_images=1,
    )
    train(config, device="cpu")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (tag,) = events.Tags()["images"]  # one of the two images of the split
    assert tag == "eval/0"
    (shown,) = events.Images(tag)
    assert shown.step == 1
    picture = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and picture.shape == (256, 3 * 256, 3)
    original = cv2.imread(str(dataset / "images" / "val" / "0.png"))
    assert original is not None
    first = cv2.resize(picture[:, :256], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(first.astype(int) - original.astype(int)).mean() < 12
    assert "eval/mIoU" in events.Tags()["scalars"]


def test_a_run_that_was_stopped_early_says_so_and_goes_on_when_asked(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first: list[Any] = []
    evaluate = DatasetSource.evaluate

    def never_better(source: DatasetSource, *given: Any, **named: Any) -> Any:
        first.append(evaluate(source, *given, **named))
        return first[0]

    monkeypatch.setattr(DatasetSource, "evaluate", never_better)
    config = small_config(
        dataset,
        tmp_path / "run",
        augment__crop_size=[32, 32],
        schedule__max_iters=5,
        train__evaluate=True,
        train__eval_interval=1,
        train__patience=1,
        train__log_images=0,
    )
    assert train(config, device="cpu").iterations == 2
    assert "stopped early: 1 evaluations without a better mIoU" in capsys.readouterr().out
    assert train(config, device="cpu", auto_resume=True).iterations == 2
    assert "this run was stopped early" in capsys.readouterr().out
    config.train.patience = None
    assert train(config, device="cpu", auto_resume=True).iterations == 5


def test_nothing_to_resume_is_said(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(
        dataset, tmp_path / "run", augment__crop_size=[32, 32], schedule__max_iters=1
    )
    train(config, device="cpu", auto_resume=True)
    assert f"{tmp_path / 'run'} has no checkpoint to resume from" in capsys.readouterr().out


def test_averaged_weights_are_the_published_ones(finished: Path) -> None:
    checkpoint = torch.load(finished / "latest.pth", weights_only=True)
    raw = checkpoint["training"]["state_dict"]
    name = "decode_head.conv_seg.weight"
    assert not torch.equal(raw[name], checkpoint["state_dict"][name])
    running = "decode_head.linear_fuse.bn.running_mean"
    assert torch.equal(raw[running], checkpoint["state_dict"][running])


def test_an_earlier_run_is_not_overwritten(dataset: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    with pytest.raises(ConfigError, match="auto_resume=True"):
        train(small_config(dataset, finished), device="cpu")
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_resuming_a_finished_run_says_so(
    dataset: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "latest.pth").stat().st_mtime_ns
    config = small_config(dataset, finished, train__ema_decay=0.5)
    result = train(config, device="cpu", resume_from=finished / "latest.pth")
    assert result.iterations == 6
    assert "this run is finished" in capsys.readouterr().out
    assert (finished / "latest.pth").stat().st_mtime_ns == before


def test_changed_settings_are_named_on_resuming(
    dataset: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(
        dataset, finished, train__ema_decay=0.5, train__precision="bf16", data__workers=1
    )
    train(config, device="cpu", auto_resume=True)
    said = capsys.readouterr().out
    assert "changed since then: train.precision: fp32 -> bf16" in said
    assert "workers" not in said


def test_another_network_cannot_be_resumed(dataset: Path, finished: Path) -> None:
    config = small_config(dataset, finished, model__context_blocks=6)
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="load-from"):
        train(config, device="cpu", resume_from=finished / "latest.pth")
    other_groups = small_config(dataset, finished, optimizer__layer_decay=0.9)
    with pytest.raises(ConfigError, match="parameter groups"):
        train(other_groups, device="cpu", resume_from=finished / "latest.pth")
    assert {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("left", ["best.pth", "scores.csv"])
def test_what_is_left_of_a_run_is_not_overwritten(left: str, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_bytes(b"weights")
    (tmp_path / "scores.csv").write_text("iteration,mIoU\n10,0.5\n")
    for other in {"best.pth", "scores.csv"} - {left}:
        (tmp_path / other).unlink()
    kept = (tmp_path / left).read_bytes()
    with pytest.raises(ConfigError, match="an earlier run"):
        train(small_config(dataset, tmp_path), device="cpu")
    assert (tmp_path / left).read_bytes() == kept


def test_weights_alone_cannot_be_resumed(dataset: Path, finished: Path, tmp_path: Path) -> None:
    whole = torch.load(finished / "latest.pth", weights_only=True)
    torch.save({"state_dict": whole["state_dict"], "meta": whole["meta"]}, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match="load-from"):
        train(
            small_config(dataset, tmp_path / "run"),
            device="cpu",
            resume_from=tmp_path / "best.pth",
        )
    assert not (tmp_path / "run").exists()


BENT: dict[str, Any] = {
    "shape": {"exp_avg": torch.zeros(3)},
    "dtype": {"exp_avg_sq": torch.zeros(16, 3, 3, 3, dtype=torch.int64)},
    "layout": {"exp_avg": torch.zeros(16, 3, 3, 3).to_sparse()},
    "no data": {"exp_avg": torch.empty(16, 3, 3, 3, device="meta")},
    "no tensor": {"exp_avg": [0.0]},
    "NaN": {"exp_avg": torch.full((16, 3, 3, 3), float("nan"))},
    "infinite": {"exp_avg_sq": torch.full((16, 3, 3, 3), float("inf"))},
    "negative": {"exp_avg_sq": torch.full((16, 3, 3, 3), -1.0)},
    "step below 0": {"step": torch.tensor(-1.0)},
    "step NaN": {"step": torch.tensor(float("nan"))},
    "step of another shape": {"step": torch.zeros(2)},
    "another entry": {"max_exp_avg_sq": torch.zeros(16, 3, 3, 3)},
}


def test_bent_moments_never_reach_the_fused_step(
    dataset: Path, finished: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(finished / "latest.pth", weights_only=True)
    config = small_config(dataset, tmp_path / "run")
    module = TrainingModule(create_model("cgrseg_t", 3, context_blocks=1), config, 3, 0)
    refuse_other_optimizer(module, checkpoint)
    states = checkpoint["training"]["optimizer"]["state"]
    good = states[0]
    assert good["exp_avg"].shape == (16, 3, 3, 3)
    for kind, changes in BENT.items():
        states[0] = {**good, **changes}
        with pytest.raises(WeightsError, match=r"of backbone\.patch_embed\.0\.weight") as caught:
            refuse_other_optimizer(module, checkpoint)
        assert "load-from" in str(caught.value), kind
    states[0] = {**good, **BENT["shape"]}
    torch.save(checkpoint, tmp_path / "bent.pth")
    with pytest.raises(WeightsError, match="exp_avg of shape"):
        train(config, device="cpu", resume_from=tmp_path / "bent.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iteration", -1),
        ("iteration", "6"),
        ("averaged_steps", 1.5),
        ("optimizer", None),
        ("optimizer", {"state": {}, "param_groups": [{"params": [[]]}]}),
        ("scaler", {"scale": float("inf")}),
        ("state_dict", {"weight": 1}),
    ],
)
def test_a_training_state_that_no_run_writes(
    name: str, value: Any, finished: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(finished / "latest.pth", weights_only=True)
    checkpoint["training"][name] = value
    torch.save(checkpoint, tmp_path / "bent.pth")
    with pytest.raises(WeightsError, match="that no run writes"):
        read_training_checkpoint(tmp_path / "bent.pth")


def test_a_damaged_latest_falls_back_to_the_one_before(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(
        dataset, tmp_path / "run", schedule__max_iters=3, train__checkpoint_interval=2
    )
    train(config, device="cpu")
    latest = tmp_path / "run" / "latest.pth"
    kept = weights_of(latest)
    latest.write_bytes(latest.read_bytes()[:100_000])
    result = train(config, device="cpu", auto_resume=True)
    assert f"resuming from {latest.with_name('previous.pth')} instead" in caplog.text
    assert "previous.pth instead" in (tmp_path / "run" / "train.log").read_text()
    assert result.iterations == 3
    again = weights_of(latest)
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    # the damaged file went aside, not into the place of the good one
    good = torch.load(latest.with_name("previous.pth"), weights_only=True)
    assert good["meta"]["iteration"] == 2
    assert latest.with_name("latest.pth.damaged").stat().st_size == 100_000


def test_random_backbones_and_settings_without_effect_are_said(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idle: dict[str, Any] = {"loss__distill_weight": 2, "loss__ssa": {"dice_weight": 2}}
    idle["train__average_last"] = 0.5
    train(small_config(dataset, tmp_path / "run", schedule__max_iters=1, **idle), device="cpu")
    told = capsys.readouterr().out
    assert "without effect: loss.distill_weight=2: there is no train.teacher" in told
    assert "without effect: loss.ssa.*: the head is dpg" in told
    assert "without effect: train.average_last=0.5: less than two of 1 iterations" in told
    assert told.count("without effect: ") == 3
    assert "weights: random, from scratch" in told
    assert "model.pretrained=imagenet" in told


def test_the_loss_of_the_first_prediction_is_of_one_head() -> None:
    assert not _without_effect(load_config("cgrseg-t_camvid"))
    assert _without_effect(load_config("cgrseg-t_camvid", {"model.head": "ssa"})) == [
        "loss.initial_weight=0.4: the ssa head has loss.ssa.initial_weight"
    ]


def test_a_name_is_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data/custom"):
        train("cgrseg-t_custom", device="cpu")


def test_a_frozen_backbone_resumes_exactly_and_keeps_its_weights(
    dataset: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model__freeze_backbone": True, "train__load_from": str(finished / "latest.pth")}
    options["augment__crop_size"] = [32, 32]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_config(dataset, whole, schedule__max_iters=3, **options), device="cpu")
    assert "frozen: the backbone" in capsys.readouterr().out
    start, end = weights_of(finished / "latest.pth"), weights_of(whole / "latest.pth")
    for name, value in end.items():
        if name.startswith("backbone."):
            assert torch.equal(value, start[name]), name
    assert not torch.equal(end["decode_head.conv_seg.weight"], start["decode_head.conv_seg.weight"])
    config = small_config(dataset, parts, schedule__max_iters=3, **options)
    config.train.checkpoint_interval = 2
    train(config, device="cpu")
    assert not differing(whole / "latest.pth", parts / "latest.pth")
    shutil.copy(parts / "previous.pth", parts / "second.pth")
    train(config, device="cpu", resume_from=parts / "second.pth")
    assert not differing(whole / "latest.pth", parts / "latest.pth")
    config.model.freeze_backbone = False
    with pytest.raises(ConfigError, match=r"model\.freeze_backbone"):
        train(config, device="cpu", resume_from=parts / "second.pth")


def test_a_random_backbone_is_not_frozen(dataset: Path, tmp_path: Path) -> None:
    config = small_config(dataset, tmp_path / "run", model__freeze_backbone=True)
    with pytest.raises(ConfigError, match="for a backbone with random weights"):
        train(config, device="cpu")
    assert not (tmp_path / "run").exists()
