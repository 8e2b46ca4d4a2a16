"""What a folder of images and masks is: the proposed settings read it, or the reason is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgrseg.config.schema import DataConfig
from cgrseg.config.settings import parse_overrides
from cgrseg.data.check import check_dataset, proposed_settings
from cgrseg.data.convert.formats.rgb import RgbMasks
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.folder_survey import survey_folder
from cgrseg.data.guess import guess_dataset
from cgrseg.data.label_files import ColorLabel, read_label
from cgrseg.errors import DataError
from tests.data import folders


def with_settings(root: Path, settings: list[str], **more: object) -> DataConfig:
    found = {key.removeprefix("data."): value for key, value in parse_overrides(settings).items()}
    return DataConfig(dataset="custom", root=str(root), **(more | found))  # type: ignore[arg-type]


def write(root: Path, **given: object) -> Path:
    usual = {"annotations": "masks", "classes": None, "make": folders.three}
    return folders.write_folder(root, **(usual | given))  # type: ignore[arg-type]


def by_split(images: str, labels: str, splits: tuple[str, str], **given: object):
    def make(root: Path) -> Path:
        for split in splits:
            places = {"images": images.format(split), "annotations": labels.format(split)}
            write(root, **places, stems=[f"{split}{k}" for k in range(4)], **given)
        return root

    return make


def renamed(root: Path, pattern: str, name: str) -> Path:
    for path in sorted(root.glob(pattern)):
        path.rename(path.with_name(name.format(path.stem) + path.suffix))
    return root


SUFFIX = {"label_name": "{stem}_mask.png"}
LIES: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "one folder a split": (
        by_split("{}", "{}", ("train", "val"), **SUFFIX),
        {"data.images=.", "data.labels=.", "data.label_name={stem}_mask"},
    ),
    "train_masks": (
        by_split("{}", "{}_masks", ("train", "val"), **SUFFIX),
        {"data.images={split}", "data.labels={split}_masks", "data.label_name={stem}_mask"},
    ),
    "other names of splits": (
        by_split("{}/photos", "{}/truth", ("Train", "Valid")),
        {
            *("data.images={split}/photos", "data.labels={split}/truth"),
            *("data.train_split=Train", "data.eval_split=Valid"),
        },
    ),
    "one split": (
        lambda root: write(root, images="train", annotations="train_masks"),
        {"data.images=train", "data.labels=train_masks"},
    ),
    "prefix": (
        lambda root: write(root, label_name="mask_{stem}.png"),
        {"data.label_name=mask_{stem}"},
    ),
    "deep": (
        lambda root: write(root, images="data/img/all", annotations="data/gt/v2"),
        {"data.images=data/img/all", "data.labels=data/gt/v2"},
    ),
    "names that say nothing": (
        lambda root: write(root, images="y", annotations="x"),
        {"data.images=y", "data.labels=x"},
    ),
    "img_0 and mask_0": (
        lambda root: renamed(write(root, label_name="mask_{stem}.png"), "images/*", "img_{}"),
        {"data.image_name=img_{stem}", "data.label_name=mask_{stem}"},
    ),
    "0_sat and 0_mask": (
        lambda root: renamed(
            write(root, images="train", annotations="train", **SUFFIX), "train/*.jpg", "{}_sat"
        ),
        {
            *("data.images=train", "data.labels=train"),
            *("data.image_name={stem}_sat", "data.label_name={stem}_mask"),
        },
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_folders_and_names(tmp_path: Path, name: str) -> None:
    make, expected = LIES[name]
    make(tmp_path)
    survey = survey_folder(tmp_path)
    assert survey is not None
    names = {"data.classes=[class0,class1,class2]"}
    assert set(survey.settings) == expected | names
    report = check_dataset(with_settings(tmp_path, survey.settings))
    assert report.ok, report.text()
    assert sum(split.pairs for split in report.splits.values()) in (4, 8)
    # The same without names, from a class list.
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    known = survey_folder(tmp_path, ("a", "b", "c"))
    assert known is not None and set(known.settings) == expected


def smooth(number: int) -> Image.Image:
    """A white disk with smooth borders."""
    height, width = folders.SIZE
    rows, columns = np.mgrid[: 4 * height, : 4 * width]
    disk = np.hypot(rows - 2 * height, columns - 2 * width) < 50 + 4 * number
    return Image.fromarray(disk).convert("L").resize((width, height), Image.Resampling.BOX)


def sparse(number: int) -> np.ndarray:
    return np.array([0, 3, 7], np.uint8)[folders.three(number)]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (smooth, ["data.classes=[background,object]", "data.label_threshold=128"]),
        (sparse, ["data.classes=[class0,class3,class7]", "data.label_values={0:0,3:1,7:2}"]),
        (
            lambda k: np.where(folders.three(k) == 2, 255, folders.three(k)).astype(np.uint8),
            ["data.classes=[background,object]"],
        ),
        (
            lambda k: np.dstack([folders.labels(k, 0, 255)] * 3),
            ["data.classes=[background,object]", "data.label_threshold=128"],
        ),
    ],
)
def test_encodings(tmp_path: Path, make, settings: list[str]) -> None:
    root = write(tmp_path, make=make)
    survey = survey_folder(root)
    assert survey is not None and survey.settings == settings
    assert check_dataset(with_settings(root, settings)).ok


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"label_name": "{stem}.jpg", "make": lambda k: folders.three(k) * np.uint8(127)},
            "JPEG changes values(.|\n)*export the masks as PNG",
        ),
        (
            {"label_name": "{stem}.jpg", "make": lambda k: folders.COLORS[folders.three(k)]},
            "JPEG changes the colors(.|\n)*export the masks as PNG",
        ),
        ({"make": lambda k: folders.COLORS[folders.three(k)]}, "cgrseg data convert rgb .* OUT$"),
        ({"make": lambda k: folders.three(k).astype(np.uint16) * 999}, "ids from 0 to 1998"),
        ({"make": lambda k: folders.labels(k, 0, 0)}, "nothing but the value 0"),
    ],
)
def test_masks_that_no_setting_reads(tmp_path: Path, given: dict, told: str) -> None:
    with pytest.raises(DataError, match=told):
        guess_dataset(write(tmp_path, **given))


def test_a_proposal_passes_the_check_or_is_none(tmp_path: Path) -> None:
    root = write(tmp_path, make=lambda k: folders.three(k, 1), classes=("a", "b", "c"))
    data = with_settings(root, [])
    survey, settings = proposed_settings(data, ("a", "b", "c"))
    assert survey is not None and settings == ["data.zero_is_ignore=true"]
    # What is set already is not proposed again.
    assert proposed_settings(with_settings(root, settings), ("a", "b", "c"))[1] == []
    (root / "classes.txt").write_text("a\nb\n")
    assert proposed_settings(data, ("a", "b"))[1] == []


def test_gray_in_color_files(tmp_path: Path) -> None:
    ids = folders.labels(2, 0, 255)
    alpha = np.full_like(ids, 255)
    for name, channels in {
        "rgb.png": [ids] * 3,
        "rgba.png": [*[ids] * 3, alpha],
        "object.png": [*[np.full_like(ids, 255)] * 3, ids],  # transparent outside the object
        "gray_alpha.png": [ids, alpha],
        "rgb.tif": [ids] * 3,
    }.items():
        Image.fromarray(np.dstack(channels)).save(tmp_path / name)
        assert np.array_equal(read_label(tmp_path / name), ids), name
    # The palette of a GIF file has any order.
    picture = Image.fromarray((ids == 0).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "a.gif")
    assert np.array_equal(read_label(tmp_path / "a.gif"), ids)
    Image.fromarray(np.dstack([ids, ids, alpha])).save(tmp_path / "color.png")
    with pytest.raises(ColorLabel):
        read_label(tmp_path / "color.png")


@pytest.mark.parametrize(
    ("images", "masks"), [("images/{}", "masks/{}"), ("{}/photos", "{}/colored")]
)
def test_color_masks_of_splits_are_converted_split_by_split(
    tmp_path: Path, images: str, masks: str
) -> None:
    make = by_split(
        *(images, masks, ("train", "val")), make=folders.rgba, label_name="{stem}_L.png"
    )
    root = make(tmp_path / "mine")
    survey = survey_folder(root)
    assert survey is not None
    commands = [
        f"cgrseg data convert rgb {root / images.format(split)} {root / masks.format(split)} OUT "
        f"--mask-suffix _L --split {split}"
        for split in ("train", "val")
    ]
    assert survey.command == " && ".join(commands)


def test_color_masks_named_otherwise_are_renamed_first(tmp_path: Path) -> None:
    root = write(tmp_path / "mine", make=folders.rgba, label_name="mask_{stem}.png")
    with pytest.raises(DataError, match="name each mask like its image"):
        guess_dataset(root)


def test_color_masks_in_nested_folders(tmp_path: Path) -> None:
    stems = ("a b/0", "a b/1", "c/d/0", "c/d/1")
    root = write(tmp_path / "mine", stems=stems, make=folders.rgba)
    names = {(0, 0, 0): "other", (128, 64, 128): "road", (220, 20, 60): "car"}
    report = run_conversion(
        RgbMasks(root / "images", root / "masks", tmp_path / "out", colors=names)
    )
    assert (report.written, report.failures) == (4, [])
    for number, stem in enumerate(stems):
        label = read_label(tmp_path / "out" / "annotations" / f"{stem}.png")
        assert np.array_equal(label, folders.three(number))
    assert check_dataset(tmp_path / "out").ok


def test_names_of_classes_need_no_quotes() -> None:
    for text in ("[sky,sport car]", "sky, sport car", '["sky","sport car"]'):
        assert parse_overrides([f"data.classes={text}"]) == {"data.classes": ["sky", "sport car"]}
    assert parse_overrides(["data.drop=sky"]) == {"data.drop": ["sky"]}


def test_a_list_names_images_of_a_template(tmp_path: Path) -> None:
    root = write(tmp_path, label_name="mask_{stem}.png", classes=("a", "b", "c"))
    renamed(root, "images/*", "img_{}")
    (root / "train.txt").write_text("img_0\nimg_1.jpg\nimages/img_2.jpg\n")
    (root / "val.txt").write_text("3\n")
    config = with_settings(
        root,
        ["data.image_name=img_{stem}", "data.label_name=mask_{stem}"],
        labels="masks",
        split_lists={"train": "train.txt", "val": "val.txt"},
    )
    report = check_dataset(config)
    assert report.ok, report.text()
    assert {name: split.pairs for name, split in report.splits.items()} == {"train": 3, "val": 1}
