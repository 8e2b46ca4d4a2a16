"""Distillation: its terms by their definition, and runs with a teacher."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cgrseg.config.schema import Config
from cgrseg.data.resolve import resolve_spec
from cgrseg.data.sources import training_sources
from cgrseg.datasets import get_spec
from cgrseg.deploy.export import export
from cgrseg.errors import ConfigError, DataError, WeightsError
from cgrseg.inference.exported_backend import open_exported
from cgrseg.models import create_model, load_model
from cgrseg.training.checkpointing import read_training_checkpoint
from cgrseg.training.data_source import check_before_training
from cgrseg.training.distillation import Teacher
from cgrseg.training.losses import attention_loss, distillation_loss
from cgrseg.training.module import TrainingModule
from cgrseg.training.resuming import Checkpoint, refuse_other_optimizer, refuse_other_teacher
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import train
from tests.training.small_run import differing, small_config, weights_of, write_dataset

Array = NDArray[np.float64]


def slope(value: Callable[[Array], float], at: Array) -> Array:
    """Gradient by differences."""
    found, step = np.zeros_like(at), 1e-6
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (value(at + moved) - value(at - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_that_of_its_definition(temperature: float) -> None:
    draws = np.random.default_rng(0)
    logits, targets = draws.normal(0, 2, (2, 2, 4, 3, 2))

    def shares(values: Array) -> Array:
        powers = np.exp(values / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def value(logits: Array) -> float:
        ours, theirs = shares(logits), shares(targets)
        return float((theirs * np.log(theirs / ours)).sum()) * temperature**2 / (2 * 3 * 2)

    given = torch.from_numpy(logits).requires_grad_()
    found = distillation_loss(given, torch.from_numpy(targets), temperature)
    found.backward()
    assert given.grad is not None
    assert found.item() == pytest.approx(value(logits), rel=1e-12) and found.item() > 0.1
    np.testing.assert_allclose(given.grad.numpy(), slope(value, logits), rtol=1e-5, atol=1e-9)
    # The gradient in closed form: the difference of the probabilities.
    plain = temperature * (shares(logits) - shares(targets)) / (2 * 3 * 2)
    np.testing.assert_allclose(given.grad.numpy(), plain, rtol=1e-12, atol=1e-15)


def test_attention_maps_are_compared_by_their_definition() -> None:
    draws = np.random.default_rng(1)
    features = [draws.normal(size=(2, 3, 4, 2)), draws.normal(size=(2, 5, 2, 1))]
    targets = [draws.normal(size=(2, 6, 4, 2)), draws.normal(size=(2, 2, 2, 1))]

    def value(first: Array) -> float:
        distances = []
        for ours, theirs in zip([first, features[1]], targets, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                maps = [(part**2).mean(axis=0) for part in (one, other)]
                maps = [part / math.sqrt((part**2).sum()) for part in maps]
                distances.append(((maps[0] - maps[1]) ** 2).sum())
        return float(np.mean(distances))

    given = [torch.from_numpy(part).requires_grad_() for part in features]
    found = attention_loss(given, [torch.from_numpy(part) for part in targets])
    found.backward()
    assert given[0].grad is not None
    assert found.item() == pytest.approx(value(features[0]), rel=1e-12)
    wanted = slope(value, features[0])
    np.testing.assert_allclose(given[0].grad.numpy(), wanted, rtol=1e-5, atol=1e-8)
    assert np.abs(wanted).max() > 1e-3


def test_equal_networks_teach_nothing() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=draws).double().requires_grad_()
    features = [torch.randn(2, 7, 3, 4, generator=draws).double().requires_grad_()]
    for loss, given in (
        (distillation_loss(logits, logits.detach(), 3.0), logits),
        (attention_loss(features, [features[0].detach()]), features[0]),
    ):
        loss.backward()
        assert given.grad is not None
        assert abs(loss.item()) < 1e-15 and float(given.grad.abs().max()) < 1e-15


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def config_of(root: Path, run_dir: Path, **changes: Any) -> Config:
    usual = {
        "augment__scale": [32, 32],
        "augment__crop_size": [32, 32],
        "schedule__max_iters": 2,
        "schedule__warmup_iters": 0,
        "train__checkpoint_interval": 1,
    }
    return small_config(root, run_dir, **{**usual, **changes})


@pytest.fixture(scope="module")
def plain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run without a teacher, whose checkpoints are teachers of the others."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(config_of(dataset, folder), device="cpu")
    return folder


def test_a_run_with_a_teacher_and_other_options_resumes_exactly(
    dataset: Path, plain: Path, tmp_path: Path
) -> None:
    images = tmp_path / "more images"
    shutil.copytree(dataset / "images", images)
    (images / "notes.txt").write_text("no image")
    teacher, run_dir = tmp_path / "teacher.pth", tmp_path / "run"
    shutil.copy(plain / "latest.pth", teacher)
    config = config_of(
        dataset,
        run_dir,
        augment__scale=[64, 64],
        augment__crop_size=[64, 64],
        augment__progressive=[0.5, 1],  # the first iteration is that of the plain run
        data__unlabeled={str(images): 0.5},  # the third image
        loss__distill_weight=0.5,
        loss__distill_features=2.0,
        optimizer__name="muon",
        train__average_last=1.0,
        train__teacher=str(teacher),
    )
    assert [pair.label for pair in training_sources(config.data)[1].pairs] == [None] * 8
    whole = train(config, device="cpu").latest.rename(tmp_path / "whole.pth")
    for row in read_table(run_dir / "metrics.csv"):
        parts = [float(row[f"loss_{name}"]) for name in ("ce", "distill", "features")]
        assert min(parts) > 0
        total = parts[0] + 0.5 * parts[1] + 2.0 * parts[2]
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    log = (run_dir / "train.log").read_text()
    assert f"teacher: {teacher}" in log and "crops of 32x32, then 64x64" in log
    assert "6 training and 8 unlabeled images" in log

    # The teacher changes weights, and no statistics of batch norms.
    ours, theirs = (weights_of(folder / "previous.pth") for folder in (run_dir, plain))
    changed = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert len(changed) > 400 and not [name for name in changed if "running" in name]

    # As if it had been killed after the first iteration.  The same weights in another file are
    # the same teacher.
    (run_dir / "previous.pth").rename(run_dir / "latest.pth")
    config.train.teacher = str(plain / "latest.pth")
    assert differing(train(config, device="cpu", auto_resume=True).latest, whole) == []

    config.train.teacher = str(plain / "previous.pth")
    with pytest.raises(ConfigError, match="another teacher than that of"):
        train(config, device="cpu", auto_resume=True)
    checkpoint = Checkpoint(whole, read_training_checkpoint(whole))
    with pytest.raises(ConfigError, match="now: none"):
        refuse_other_teacher(checkpoint, {})
    config.optimizer.name = "adamw"
    module = TrainingModule(create_model("cgrseg_t", 3, context_blocks=1), config, 3)
    with pytest.raises(ConfigError, match="different optimizer parameter groups"):
        refuse_other_optimizer(module, checkpoint.state)


def test_the_teacher_predicts_as_its_network(dataset: Path, plain: Path, tmp_path: Path) -> None:
    config = config_of(dataset, tmp_path, train__teacher=str(plain / "latest.pth"))
    spec = resolve_spec(config.data)
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = load_model(plain / "latest.pth", verbose=False)
    teacher = Teacher(config, spec)
    with torch.no_grad():
        wanted, features = model(image), model.backbone(image)[1:]
    logits = wanted.clone().requires_grad_()
    terms = teacher.add_terms({"loss": torch.ones(())}, image, logits, [])
    assert terms["loss"].item() == pytest.approx(1, abs=1e-6)
    terms["loss"].backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6
    found, strong = teacher._run(image)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert float(attention_loss(features, strong)) < 1e-8


def test_what_cannot_teach_is_refused(
    dataset: Path, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = str(plain / "latest.pth")
    config = config_of(dataset, tmp_path, train__teacher=source)
    with pytest.raises(ConfigError, match=r"other classes than the data: 3 classes"):
        Teacher(config, get_spec("camvid"))
    renamed = config_of(dataset, tmp_path, train__teacher=source, data__rename={"thing": "object"})
    with pytest.raises(ConfigError, match=r"other classes(.|\n)*sky, ground, object"):
        Teacher(renamed, resolve_spec(renamed.data))
    with pytest.raises(ConfigError, match=r"loss\.distill_weight=0"):
        config_of(dataset, tmp_path, train__teacher=source, loss__distill_weight=0)
    with pytest.raises(ConfigError, match=r"cgrseg autolabel"):
        config_of(dataset, tmp_path, data__unlabeled={str(dataset): 1})
    missing = config_of(dataset, tmp_path / "run", train__teacher=str(plain / "no.pth"))
    missing.data.root = "not looked at"
    with pytest.raises(WeightsError, match=r"no\.pth"):
        train(missing, device="cpu")
    leaking = config_of(
        dataset, tmp_path, train__teacher=source, train__evaluate=True,
        data__unlabeled={str(dataset / "images"): 1},
    )  # fmt: skip
    check_before_training(leaking)
    assert "data.unlabeled holds images of val of data.root (2 of them)" in caplog.text
    empty = config_of(
        dataset, tmp_path, train__teacher=source, data__unlabeled={str(plain / "tensorboard"): 1}
    )
    with pytest.raises(DataError, match=r"no images in this folder of data\.unlabeled"):
        training_sources(empty.data)


@pytest.mark.slow
def test_an_exported_file_teaches_as_its_checkpoint(
    dataset: Path, plain: Path, tmp_path: Path
) -> None:
    file = tmp_path / "teacher.onnx"
    export(plain / "latest.pth", "onnx", file, sizes=[(64, 64)])
    config = config_of(dataset, tmp_path, train__teacher=str(file))
    spec = resolve_spec(config.data)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exported = Teacher(config, spec)
    assert exported.digest == open_exported(str(file)).digest()
    config.train.teacher = str(plain / "latest.pth")
    network = Teacher(config, spec)
    assert exported.digest != network.digest
    found, wanted = exported._run(image)[0], network._run(image)[0]
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    config.train.teacher, config.loss.distill_features = str(file), 1.0
    with pytest.raises(ConfigError, match="an exported file, which gives no features"):
        Teacher(config, spec)
