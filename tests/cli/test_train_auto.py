"""`cgrseg train --auto FOLDER`: a config with reasons, and a training with it at once."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgrseg.config import load_config
from cgrseg.data.check.report import SplitSummary
from cgrseg.data.label_files import read_label
from cgrseg.devices import Placement
from cgrseg.errors import CGRSegError, ConfigError
from cgrseg.training import auto
from tests.data.folders import TWELVE, rgba, three, write_folder

from .conftest import Run

SMALL = ["model.context_blocks=1", "schedule.max_iters=2", "data.workers=0", "--device", "cpu"]


def rare(number: int) -> np.ndarray:
    """Labels of two classes, one of which has 0.1 % of the pixels."""
    values = np.zeros((48, 64), np.uint8)
    values[20, 10 + number : 13 + number] = 1
    return values


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_two_classes_of_which_one_is_rare(run: Run) -> None:
    write_folder(Path("mine"), make=rare)
    given = ["model.pretrained=null", "train.batch_size=2", *SMALL]
    result = run("train", "--auto", "mine", *given)
    assert result.exit_code == 0, result.output
    assert "expected time: " in result.stdout
    config_file = Path("cgrseg-t_mine_auto.py")
    text = config_file.read_text()
    reason = "# classes below 1% of the labeled pixels: road 0.10%"
    assert f"{reason}\n        'loss.class_weights'" in text
    assert "# given on the command line\n        'train.batch_size': 2" in text
    settings = text[text.index("{") :]
    assert settings.count("        # ") >= settings.count("        '") > 12
    config = load_config(config_file)
    assert config.augment.rare_class_crops == 0.5
    assert config.augment.scale == (64, 48) and config.augment.crop_size == (64, 64)
    assert config.optimizer.lr == 1e-3 and config.schedule.max_iters == 2
    assert Path("work_dirs/cgrseg-t_mine_auto/latest.pth").is_file()
    stored = json.loads(Path("work_dirs/cgrseg-t_mine_auto/config.json").read_text())
    low, high = stored["loss"]["class_weights"]
    assert high > 30 * low

    again = run("train", "--auto", "mine", *given)
    assert again.exit_code == 2 and "it is not overwritten" in again.stderr
    assert "train with it: cgrseg train cgrseg-t_mine_auto.py" in again.stderr
    assert config_file.read_text() == text


def test_one_image_without_imagenet_weights_where_memory_is_unknown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "empty")
    monkeypatch.setattr(auto, "available_memory", lambda: None)
    monkeypatch.delattr(auto, "peak_memory")  # Windows has none
    write_folder(Path("mine"), stems=("0",))
    result = run("train", "--auto", "mine", "name=other", "--write-only", *SMALL)
    assert result.exit_code == 0, result.output
    config = load_config("other.py")
    assert not config.train.evaluate and config.data.val_fraction == 0
    assert config.model.pretrained is None
    text = Path("other.py").read_text()
    assert "# random weights, because ImageNet's cannot be had here" in text
    assert "# at most 4, because the free memory is not known here; measured: " in text
    assert config.train.batch_size == 4 and config.train.accumulate == 1
    assert not Path("work_dirs").exists()
    trained = run("train", "other.py", "--device", "cpu")
    assert trained.exit_code == 0, trained.output


@pytest.mark.parametrize("name", TWELVE)
def test_twelve_folders_as_people_have_them(name: str) -> None:
    TWELVE[name](Path("mine"))
    plan = auto.Plan("cgrseg-t_custom")
    report = auto._choose_data(plan, "mine", print, None)
    assert report.ok and report.splits["train"].pairs == 3 and report.splits["val"].pairs == 1
    assert sum(1 for pixels in report.splits["train"].pixels if pixels) == len(report.classes) >= 2


def test_masks_in_color_become_class_ids(capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_folder(
            Path("mine"),
            images=f"images/{split}",
            annotations=f"masks/{split}",
            make=rgba,
            classes=None,
        )
    plan = auto.Plan("cgrseg-t_custom")
    report = auto._choose_data(plan, "mine", print, None)
    assert "the masks hold 3 colors: mine_ids gets them" in capsys.readouterr().out
    assert report.classes == ("color_000000", "color_804080", "color_dc143c")
    assert [split.pairs for split in report.splits.values()] == [4, 4]
    assert plan.settings["data.root"] == "mine_ids"
    assert plan.reasons["data.root"] == "made from mine; class names: classes.txt in it"
    for number in range(4):
        label = read_label(Path(f"mine_ids/annotations/train/{number}.png"))
        assert (label == three(number)).all()
    with pytest.raises(ConfigError, match="train with it: cgrseg train --auto mine_ids"):
        auto._choose_data(auto.Plan("cgrseg-t_custom"), "mine", print, None)


@pytest.mark.parametrize("given", [{"data.images": "images"}, {"data.label_name": "{stem}"}])
def test_masks_in_color_with_settings_for_ids_are_refused(given: dict[str, str]) -> None:
    TWELVE["RGBA"](Path("mine"))
    with pytest.raises(CGRSegError, match="cgrseg data convert rgb mine/images mine/masks OUT"):
        auto._choose_data(auto.Plan("cgrseg-t_custom", given), "mine", print, None)
    assert not Path("mine_ids").exists()


def test_class_ids_never_lie_in_the_dataset_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    TWELVE["RGBA"](Path("mine"))
    monkeypatch.chdir("mine")
    with pytest.raises(CGRSegError, match="cgrseg data convert rgb"):
        auto._choose_data(auto.Plan("cgrseg-t_custom"), ".", print, None)
    assert not Path("mine_ids").exists()


def test_a_folder_of_that_name_is_left_as_it_is() -> None:
    TWELVE["RGBA"](Path("mine"))
    own = write_folder(Path("mine_ids"), classes=None)
    with pytest.raises(ConfigError, match="remove or rename it"):
        auto._choose_data(auto.Plan("cgrseg-t_custom"), "mine", print, None)
    assert sorted(path.name for path in own.iterdir()) == ["annotations", "images"]


def test_images_and_masks_in_color_in_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(
        Path("mine"),
        images=".",
        annotations=".",
        label_name="{stem}_mask.png",
        make=rgba,
        classes=None,
    )
    report = auto._choose_data(auto.Plan("cgrseg-t_custom"), "mine", print, None)
    assert len(report.classes) == 3 and report.splits["train"].pairs == 3
    assert "left out" not in capsys.readouterr().out


def test_masks_that_are_not_converted_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Files in a folder hide those in its subfolders from the conversion."""
    stems = ("0", "1", "2", "sub/3", "sub/4")
    write_folder(Path("mine"), annotations="masks", stems=stems, make=rgba, classes=None)
    auto._choose_data(auto.Plan("cgrseg-t_custom"), "mine", print, None)
    assert "3 of 5 masks in mine/masks were converted" in capsys.readouterr().out


def test_many_colors_are_no_classes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    write_folder(Path("mine"), annotations="masks", make=lambda _: noise, classes=None)
    with pytest.raises(CGRSegError, match="cgrseg data convert rgb mine/images mine/masks OUT"):
        auto._choose_data(auto.Plan("cgrseg-t_custom"), "mine", print, None)
    assert not Path("mine_ids").exists()


@pytest.mark.parametrize(("stems", "held_out"), [(("0", "1", "2"), 1), (("0",), 0)])
def test_folder_without_a_validation_split(stems: tuple[str, ...], held_out: int) -> None:
    write_folder(Path("mine"), images="images/train", annotations="annotations/train", stems=stems)
    plan = auto.Plan("cgrseg-t_custom")
    report = auto._choose_data(plan, "mine", print, None)
    assert report.splits["train"].pairs == len(stems) - held_out
    assert plan.config.train.evaluate == bool(held_out)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWELVE)
def test_twelve_folders_train_at_once(run: Run, name: str) -> None:
    TWELVE[name](Path("mine"))
    result = run("train", "--auto", "mine", "model.pretrained=null", *SMALL)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("size", "across", "on_cpu", "scale", "crop"),
    [
        ((360, 480), 40, True, (480, 360), 256),
        ((360, 480), 40, False, (480, 360), 352),
        ((3000, 4000), 600, False, (683, 512), 512),  # all classes stay visible at 512
        ((3000, 4000), 60, False, (1067, 800), 512),  # 16 of 60 pixels are left at 800
        ((3000, 4000), 4, False, (1365, 1024), 512),
        ((20, 30), 4, True, (30, 20), 64),
    ],
)
def test_scale_and_crop_follow_images_and_objects(
    size: tuple[int, int], across: int, on_cpu: bool, scale: tuple[int, int], crop: int
) -> None:
    plan = auto.Plan("cgrseg-t_custom")
    pixels = (size[0] * size[1] * 4, across**2 * 3, 0)
    summary = SplitSummary(4, 4, pixels, (4, 3, 0), 0, (size, size), median=size)
    auto._choose_sizes(plan, summary, on_cpu=on_cpu)
    assert plan.config.augment.scale == plan.config.test.scale == scale
    assert plan.config.augment.crop_size == (crop, crop)


def test_given_scale_decides_on_evaluation_and_crop() -> None:
    plan = auto.Plan("cgrseg-t_custom", {"augment.scale": [160, 400]})
    plan.reasons = {"augment.scale": auto._GIVEN}
    summary = SplitSummary(4, 4, (9, 9), (4, 3), 0, ((360, 480),) * 2, median=(360, 480))
    auto._choose_sizes(plan, summary, on_cpu=True)  # 360x480 become 160x213
    assert plan.config.augment.scale == plan.config.test.scale == (160, 400)
    assert plan.config.augment.crop_size == (160, 160)


@pytest.mark.parametrize(
    ("images", "seconds", "given", "batch", "expected"),
    [
        (3, 1, {}, 4, ["4 images per optimizer step, the fewest: 4,000 crops", "fewer than 2,000"]),
        (400, 1, {}, 8, ["8 images per optimizer step: 50 passes", "at least 2,000 steps"]),
        (400, 1, {"train.accumulate": 4}, 2, ["8 images per optimizer step: 50 passes"]),
        (400, 40, {}, 8, ["what 12 hours allow of 50 passes"]),
        (400, 400, {}, 8, ["4,000 crops, the fewest, though they take more than 12 hours"]),
        (
            400,
            1,
            {"train.batch_size": 6},
            6,
            ["evaluations: 10, of 3 images and about 0.06 s each"],
        ),
    ],
)
def test_reasons_are_true(
    images: int,
    seconds: float,
    given: dict[str, int],
    batch: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_folder(Path("mine"))

    def measured(*arguments: Any) -> list[auto.StepCost]:
        images = min(4, arguments[3])
        return [auto.StepCost(images, seconds * images / 4, 1 << 30, 1 << 28)]

    monkeypatch.setattr(auto, "_measure_steps", measured)
    monkeypatch.setattr(auto, "_image_times", lambda *_: (0.001, 0.02))
    monkeypatch.setattr(auto, "available_memory", lambda: 64 << 30)
    plan = auto.Plan("cgrseg-t_custom", {"name": "plan", **given})
    plan.reasons = dict.fromkeys(plan.settings, auto._GIVEN)
    auto._choose_data(plan, "mine", print, None)
    auto._choose_schedule(plan, Placement("cpu"), images, 3)
    text = " ".join(plan.write().read_text().replace("\n        # ", " ").split())
    assert all(each in text for each in expected), text
    assert plan.config.train.batch_size == batch


def test_write_only_needs_auto(run: Run) -> None:
    result = run("train", "cgrseg-t_camvid", "--write-only")
    assert result.exit_code == 2 and "given without --auto" in result.stderr
    result = run("train", "--auto", "mine", "--write-only", "--print-config")
    assert result.exit_code == 2 and "given with --print-config" in result.stderr


def test_one_folder_and_one_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("train", "--auto", "mine", "--data-root", "yours")
    assert result.exit_code == 2 and "yours, beside the folder mine" in result.stderr
    with zipfile.ZipFile("sets.zip", "w") as archive:
        archive.writestr("inner/classes.txt", "a\nb\n")
    monkeypatch.setenv("CGRSEG_CACHE", str(Path("cache").resolve()))
    Path("cgrseg-t_inner_auto.py").touch()  # found by the name of the folder in the archive
    result = run("train", "--auto", f"zip://inner::{Path('sets.zip').resolve()}")
    assert result.exit_code == 2 and "it is not overwritten" in result.stderr
    monkeypatch.setattr(auto, "find_placement", lambda _: Placement("cpu", world_size=2))
    result = run("train", "--auto", "mine")
    assert result.exit_code == 2 and "expected: one process" in result.stderr
