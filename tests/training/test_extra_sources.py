"""Several training sets: proportions, resuming, what is validated, and what is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cgrseg.config import load_config
from cgrseg.data.label_files import read_label
from cgrseg.data.sources import training_sources
from cgrseg.devices import Placement
from cgrseg.errors import ConfigError, DataError
from cgrseg.training.data_source import DatasetSource, check_before_training
from cgrseg.training.runner import train
from tests.training.small_run import differing, small_config, write_dataset

pytestmark = pytest.mark.filterwarnings("ignore:no GPU was found")


@pytest.fixture()
def labeled(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


def write_extra(root: Path, count: int = 5, names: str = "sky\nground\nthing\n") -> Path:
    """A dataset without splits, as `cgrseg autolabel` writes it; 100 marks its images."""
    for part in ("images", "annotations"):
        (root / part).mkdir(parents=True)
    label = np.full((64, 64), 255, np.uint8)
    label[20:30], label[30:40] = 0, 1
    for number in range(count):
        cv2.imwrite(str(root / f"images/{number}.png"), np.full((64, 64, 3), 100, np.uint8))
        cv2.imwrite(str(root / f"annotations/{number}.png"), label)
    (root / "classes.txt").write_text(names)
    return root


def test_samples_come_from_both_by_weight_and_validation_from_the_first(
    labeled: Path, tmp_path: Path
) -> None:
    extra = write_extra(tmp_path / "auto")
    config = small_config(
        labeled, tmp_path / "run", data__extra=f"{extra}:3", train__evaluate=True,
        train__batch_size=4,
    )  # fmt: skip
    source = DatasetSource(config, Placement("cpu"))
    assert source.size == 6 + 5  # nothing of the extra set is held out
    batches = list(islice(iter(source.batches(0)), 5))
    indices = np.concatenate([batch["index"].numpy() for batch in batches])
    assert all((batch["index"] >= 6).sum() == 3 for batch in batches)
    assert set(indices[indices >= 6]) == set(range(6, 11))
    files = source.describe(indices.tolist())
    for index, found in zip(indices, files, strict=True):
        assert (extra in Path(found["image"]).parents) == (index >= 6)
    assert len(source.image_lists()["training"]) == 11
    assert len(source.image_lists()["validation"]) == 2


def test_ignored_pixels_get_the_ignore_index_of_the_run(labeled: Path, tmp_path: Path) -> None:
    config = small_config(
        labeled, tmp_path / "run", data__extra={str(write_extra(tmp_path / "auto")): 1.0},
        data__ignore_index=250,
    )  # fmt: skip
    _, extra = training_sources(config.data)
    label = extra.pairs[0].label
    assert label is not None
    stored = read_label(label)
    ids = extra.spec.rule_for(label).apply(stored, source=label)
    assert np.array_equal(ids == 250, stored == 255)
    assert extra.spec.ignore_index == 250


def test_a_resumed_training_ends_with_the_same_weights(labeled: Path, tmp_path: Path) -> None:
    extra = str(write_extra(tmp_path / "auto"))

    def config(folder: str, iterations: int) -> Any:
        return small_config(
            labeled, tmp_path / folder, data__extra={extra: 0.5}, schedule__max_iters=iterations,
            schedule__power=0.0, augment__noise=0.5, augment__classmix=0.5, augment__mosaic=0.5,
        )  # fmt: skip

    train(config("whole", 4), device="cpu")
    train(config("parts", 2), device="cpu")
    train(config("parts", 4), device="cpu", auto_resume=True)
    assert differing(tmp_path / "whole/latest.pth", tmp_path / "parts/latest.pth") == []


@pytest.mark.parametrize("names", ["ground\nsky\nthing\n", "sky\nground\n"])
def test_other_classes_are_refused(labeled: Path, tmp_path: Path, names: str) -> None:
    extra = write_extra(tmp_path / "auto", names=names)
    config = small_config(labeled, tmp_path / "run", data__extra=str(extra))
    with pytest.raises(DataError) as caught:
        DatasetSource(config, Placement("cpu"))
    assert str(extra) in str(caught.value)
    assert "other classes than the run: id" in str(caught.value)
    assert "sky, ground, thing" in str(caught.value)


@pytest.mark.parametrize("names", ["sky\nground\nthing\n", "land\nsky\n"])
def test_rules_for_classes_hold_for_a_set_with_the_same_classes(
    labeled: Path, tmp_path: Path, names: str
) -> None:
    """Labels are sky 0 and ground 1; a set that is labeled in the run's own classes stays."""
    extra = write_extra(tmp_path / "auto", names=names)
    config = small_config(
        labeled, tmp_path / "run", data__extra=str(extra),
        data__merge={"land": ["ground", "thing"]}, data__rename={"sky": "air"},
    )  # fmt: skip
    if names.startswith("land"):
        with pytest.raises(DataError, match="id 0: 'air' became 'land'"):
            training_sources(config.data)
        return
    run, other = training_sources(config.data)
    assert run.spec.classes == other.spec.classes == ("air", "land")
    config.data.drop = ["sky"]
    config.data.rename = {}
    for source in training_sources(config.data):
        assert source.spec.classes == ("land",)
        label = source.pairs[0].label
        assert label is not None
        stored = read_label(label)
        ids = source.spec.rule_for(label).apply(stored, source=label)
        assert np.array_equal(ids == 255, (stored == 0) | (stored == 255))
        assert np.array_equal(ids == 0, (stored == 1) | (stored == 2))
    (extra / "classes.txt").write_text("land\n")
    for path in (extra / "annotations").iterdir():
        cv2.imwrite(str(path), np.where(np.arange(64)[:, None] < 9, 0, np.full((64, 64), 255)))
    _, other = training_sources(config.data)  # labels in the classes that the run has
    assert other.spec.classes == ("land",)


def test_validation_images_in_an_extra_set_are_told(
    labeled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = write_extra(tmp_path / "auto")
    config = small_config(labeled, tmp_path / "run", data__extra=str(extra), train__evaluate=True)
    check_before_training(config)
    assert "data.extra" not in caplog.text
    validated = sorted((labeled / "images/val").iterdir())[0]
    for name in ("other name.png", validated.name):
        (extra / "images" / name).write_bytes(validated.read_bytes())
        label = (extra / "annotations/0.png").read_bytes()
        (extra / "annotations" / name).with_suffix(".png").write_bytes(label)
    check_before_training(config)
    assert "images of val of data.root (1 of them): this one is " + str(validated) in caplog.text


def test_an_extra_set_is_checked_before_training(labeled: Path, tmp_path: Path) -> None:
    extra = write_extra(tmp_path / "auto")
    (extra / "annotations/3.png").unlink()
    config = small_config(labeled, tmp_path / "run", data__extra=str(extra))
    with pytest.raises(DataError, match=r"3\.png"):
        DatasetSource(config, Placement("cpu"))
    with pytest.raises(DataError, match="no such folder"):
        DatasetSource(
            small_config(labeled, tmp_path / "run", data__extra=str(tmp_path / "none")),
            Placement("cpu"),
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/auto", {"data/auto": 1.0}),
        ("data/auto:0.5", {"data/auto": 0.5}),
        ("a:2, b:1e-1,c", {"a": 2.0, "b": 0.1, "c": 1.0}),
        (r"C:\auto", {r"C:\auto": 1.0}),
        ('{"a,b": 2}', {"a,b": 2.0}),
    ],
)
def test_forms_of_the_setting(text: str, expected: dict[str, float]) -> None:
    assert load_config("cgrseg-t_custom", [f"data.extra={text}"]).data.extra == expected


@pytest.mark.parametrize("text", ["a:0", "a:-1", "a:nan", "[1]", "7", "null"])
def test_wrong_values_say_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="FOLDER:WEIGHT"):
        load_config("cgrseg-t_custom", [f"data.extra={text}"])
