"""A resumed training goes on with the classes, palette, label rule and images that it had."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from cgrseg.config.schema import Config, DataConfig
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import ConfigError
from cgrseg.training.checkpointing import write_checkpoint
from cgrseg.training.resuming import Checkpoint, data_record, refuse_other_data
from cgrseg.training.runner import train
from tests.training.small_run import small_config, write_dataset

pytestmark = pytest.mark.filterwarnings("ignore:no GPU was found")

IMAGES = {"training": ["a", "b"], "validation": ["c"]}
NAMES = ["plaster", "rust", "moss"]


def spec_of(root: Path, **changes: Any) -> Any:
    return resolve_spec(
        DataConfig(dataset="custom", root=str(root), **{"classes": NAMES, **changes})
    )


def checkpoint_of(spec: Any, images: Mapping[str, Any] = IMAGES, **meta: Any) -> Checkpoint:
    stored = {
        "classes": list(spec.classes),
        "palette": [list(color) for color in spec.palette],
        "data": data_record(spec, images),
    }
    return Checkpoint(Path("run/latest.pth"), {"meta": {**stored, **meta}})


def refusal(checkpoint: Checkpoint, spec: Any, images: Mapping[str, Any] = IMAGES) -> str:
    record = data_record(spec, images)
    with pytest.raises(ConfigError) as caught:
        refuse_other_data(checkpoint, spec, record, None)
    token = re.search(r"train\.accept_data=(\S+?);", str(caught.value))
    if token is not None:
        accepted = refuse_other_data(checkpoint, spec, record, token[1])
        assert accepted.changed_data
        with pytest.raises(ConfigError):
            refuse_other_data(checkpoint, spec, record, f"{token[1]}0")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": ["moss", "rust", "plaster"]}, ["id 0: 'plaster' became 'moss'", "id 2"]),
        ({"classes": [*NAMES, "mud"]}, ["id 3: no class became 'mud'"]),
        ({"classes": NAMES[:2]}, ["id 2: 'moss' became no class"]),
        ({"rename": {"moss": "algae"}}, ["id 2: 'moss' became 'algae'"]),
        ({"drop": ["plaster"]}, ["id 0: 'plaster' became 'rust'"]),
    ],
)
def test_other_classes_stop_and_cannot_be_accepted(
    tmp_path: Path, changes: dict[str, Any], told: list[str]
) -> None:
    message = refusal(checkpoint_of(spec_of(tmp_path)), spec_of(tmp_path, **changes))
    assert all(part in message for part in told), message
    assert "checkpoint: plaster, rust, moss" in message
    assert "train.load_from=run/latest.pth" in message
    assert "accept_data" not in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"palette": [(1, 1, 1), (2, 2, 2), (3, 3, 3)]}, "'plaster' was (128, 0, 0)"),
        ({"zero_is_ignore": True}, "label rule (was: 0..2 are the classes"),
        ({"ignore_index": 254}, "label rule"),
    ],
)
def test_another_palette_or_label_rule_stops_unless_accepted(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    message = refusal(checkpoint_of(spec_of(tmp_path)), spec_of(tmp_path, **changes))
    assert told in message, message


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({**IMAGES, "training": ["a", "b", "d"]}, "training images (2 images then, 3 now)"),
        ({**IMAGES, "training": ["b", "a"]}, "training images (2 images then, 2 now)"),
        ({**IMAGES, "validation": []}, "validation images (1 images then, 0 now)"),
    ],
)
def test_another_image_list_stops_unless_accepted(
    tmp_path: Path, images: dict[str, list[str]], told: str
) -> None:
    spec = spec_of(tmp_path)
    assert told in refusal(checkpoint_of(spec), spec, images)


def test_what_is_equal_goes_on(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    for checkpoint in (
        checkpoint_of(spec),
        checkpoint_of(spec, data=None),  # of an earlier version
        checkpoint_of(spec, data={"images": 5, "label_rule": data_record(spec, {})["label_rule"]}),
        checkpoint_of(spec, palette="none"),
        checkpoint_of(spec, {"training": IMAGES["training"]}),  # without evaluation
    ):
        found = refuse_other_data(checkpoint, spec, data_record(spec, IMAGES), None)
        assert found.changed_data == ()


@pytest.mark.parametrize("classes", [7, "abc", [1, 2, 3], {"a": 1}])
def test_class_names_that_are_no_list_stop_too(tmp_path: Path, classes: Any) -> None:
    spec = spec_of(tmp_path)
    assert "are not those of this checkpoint" in refusal(checkpoint_of(spec, classes=classes), spec)


def test_a_run_stops_before_it_writes_and_goes_on_when_accepted(tmp_path: Path) -> None:
    data, work_dir = write_dataset(tmp_path / "data"), tmp_path / "run"

    def config(iterations: int, **changes: Any) -> Config:
        return small_config(data, work_dir, schedule__max_iters=iterations, **changes)

    train(config(1), device="cpu")
    before = {path.name: path.read_bytes() for path in work_dir.iterdir() if path.is_file()}
    names = (data / "classes.txt").read_text()
    (data / "classes.txt").write_text("thing\nground\nsky\n")
    for options in ({"auto_resume": True}, {"resume_from": work_dir / "latest.pth"}):
        with pytest.raises(ConfigError, match="id 0: 'sky' became 'thing'"):
            train(config(2), device="cpu", **options)  # type: ignore[arg-type]
    (data / "classes.txt").write_text(f"# the order that was trained\n{names}")
    for folder in ("images", "annotations"):
        shutil.copy(data / folder / "train/0.png", data / folder / "train/new.png")
    cv2.imwrite(str(data / "images/train/new.png"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"6 images then, 7 now") as caught:
        train(config(2), device="cpu", auto_resume=True)
    assert {p.name: p.read_bytes() for p in work_dir.iterdir() if p.is_file()} == before
    token = re.search(r"train\.accept_data=(\S+?);", str(caught.value))
    assert token is not None
    accepted = config(2, train__accept_data=token[1])
    assert train(accepted, device="cpu", auto_resume=True).iterations == 2
    assert "6 images then, 7 now" in (work_dir / "train.log").read_text()
    # The checkpoint knows the list now.
    assert train(config(3), device="cpu", auto_resume=True).iterations == 3


def test_a_start_from_the_weights_of_other_classes_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data")
    train(small_config(data, tmp_path / "first", schedule__max_iters=1), device="cpu")
    (data / "classes.txt").write_text("thing\nground\nsky\n")
    weights = tmp_path / "first" / "latest.pth"
    second = small_config(
        data, tmp_path / "second", schedule__max_iters=1, train__load_from=str(weights)
    )
    capsys.readouterr()
    train(second, device="cpu")
    told = "".join(capsys.readouterr())
    assert "id 0: 'sky' became 'thing'" in told
    assert "classifier" in told


def test_the_record_holds_plain_types(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    stored = {"state_dict": {}, "meta": {"data": data_record(spec, IMAGES)}, "training": {}}
    write_checkpoint(tmp_path / "x.pth", stored)
    assert torch.load(tmp_path / "x.pth", weights_only=True)["meta"] == stored["meta"]
