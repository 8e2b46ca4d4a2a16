"""`train.batch_size=auto`: measured once, kept by the run, and no trace in its weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cgrseg.data.resolve import resolve_spec
from cgrseg.devices import Placement
from cgrseg.errors import ConfigError, EnvironmentProblem
from cgrseg.training import auto
from cgrseg.training.module import build_model
from cgrseg.training.runner import train
from tests.fake_device import CUDA, fake_cuda
from tests.training.small_run import differing, small_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def batch_size(run: Path) -> Any:
    return json.loads((run / "config.json").read_text())["train"]["batch_size"]


def test_measured_size_is_kept_and_leaves_the_run_as_it_would_be(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "LARGEST_STEP", 4)
    changes: dict[str, Any] = {"schedule__max_iters": 1, "train__accumulate": 2}
    measured = small_config(dataset, tmp_path / "auto", train__batch_size="auto", **changes)
    train(measured, device="cpu")
    assert batch_size(tmp_path / "auto") == 2  # 4 images per optimizer step, in 2 batches
    log = tmp_path / "auto" / "train.log"
    assert "train.batch_size=auto: 2 images, of at most 4" in log.read_text()
    train(small_config(dataset, tmp_path / "plain", train__batch_size=2, **changes), device="cpu")
    assert differing(tmp_path / "auto" / "latest.pth", tmp_path / "plain" / "latest.pth") == []

    def again(*_: Any) -> None:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(auto, "largest_batch", again)
    longer = {**changes, "schedule__max_iters": 2}
    resumed = small_config(dataset, tmp_path / "auto", train__batch_size="auto", **longer)
    assert train(resumed, device="cpu", auto_resume=True).iterations == 2
    assert batch_size(tmp_path / "auto") == 2
    assert "batch_size" not in log.read_text().split("resuming")[1]


def test_size_follows_the_free_memory(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(dataset, tmp_path / "run", train__batch_size="auto")
    place, spec = Placement("cpu"), resolve_spec(config.data)
    state = torch.get_rng_state()
    _, (two, four) = auto.largest_batch(config, spec, place, 4, auto.memory_budget(place))
    assert torch.equal(torch.get_rng_state(), state)
    assert two.images == 2 and four.images == 4
    weights = sum(p.nbytes for p in build_model(config, spec).parameters())
    assert two.fixed == four.fixed == pytest.approx(4 * weights, rel=1e-3)  # AdamW
    assert two.seconds > 0 and four.fixed < two.memory < four.memory < 1e9
    monkeypatch.setattr(auto, "_measure_steps", lambda *_: [two, four])
    for images in (8, 16, 32):
        room = int((four.memory_for(images) + 1) / 0.8) + 1
        monkeypatch.setattr(auto, "available_memory", lambda room=room: room)
        assert auto.settle_batch_size(config, spec, place, print).train.batch_size == min(
            images, 16
        )
    monkeypatch.undo()
    monkeypatch.setattr(auto, "available_memory", lambda: 40 << 20)
    with pytest.raises(EnvironmentProblem, match="batches of 2 images of 64x64"):
        train(config, device="cpu")
    assert not (tmp_path / "run" / "config.json").exists()


def test_steps_run_on_a_fake_gpu(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(dataset, tmp_path / "run", train__precision="bf16")
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    with fake_cuda() as gpu:
        step = auto._RandomStep(config, resolve_spec(config.data), CUDA)
        trained, labels = step.module.training_step, []

        def noting(batch: Any, number: int) -> torch.Tensor:
            labels.append(batch["label"].cpu())
            return trained(batch, number)

        monkeypatch.setattr(step.module, "training_step", noting)
        assert step.run(2) > 0
    for rows, columns in itertools.product(torch.arange(64).tensor_split(3), repeat=2):
        block = labels[0][:, rows[1] : rows[-1], columns[1] : columns[-1]]
        assert (block == block[:, :1, :1]).all()  # few classes, as in the images of a dataset
    assert gpu.operations > 1000 and step.fixed_memory > 50e6


def test_several_processes_and_unknown_memory_are_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(dataset, tmp_path / "run", train__batch_size="auto")
    spec = resolve_spec(config.data)
    several = Placement("cpu", world_size=2, local_world_size=2)
    with pytest.raises(ConfigError, match=r"auto for 2 processes(.|\n)*train\.batch_size=8"):
        auto.settle_batch_size(config, spec, several, print)
    monkeypatch.setattr(auto, "available_memory", lambda: None)
    with pytest.raises(ConfigError, match="free memory is not known"):
        auto.settle_batch_size(config, spec, Placement("cpu"), print)
    with pytest.raises(ConfigError, match="only a training on the folder"):
        _ = config.train.images_per_batch
