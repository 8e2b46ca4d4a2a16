"""The doctor on copies of real samples: every planted fault is found, none is invented.

Each fault below is planted alone in a clean copy.  The check must report the fault's
code for the fault's file, and no error or warning of any other kind.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.config.schema import Config, DataConfig
from cgrseg.data.check import check_dataset
from cgrseg.data.convert import convert_coco_stuff10k
from cgrseg.data.guess import guess_dataset
from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.data.pairs import find_pairs, list_pairs
from cgrseg.datasets import get_spec
from tests.training.starting import training_starts

CAMVID_FRAMES = {"train": 48, "val": 16, "test": 16}


@pytest.fixture(scope="module")
def clean(shared_data, tmp_path_factory):
    """Root of each clean sample set."""
    root = tmp_path_factory.mktemp("clean")
    shutil.copytree(shared_data / "ade20k_samples", root / "ade20k")
    pascal = shared_data / "pascal_context_samples"
    for folder in ("JPEGImages", "SegmentationClassContext", "ImageSets"):
        shutil.copytree(pascal / folder, root / "pascal" / folder)
    pytest.importorskip("scipy", reason="MATLAB files need the extra 'convert'")
    coco = shared_data / "cocostuff10k_samples"
    convert_coco_stuff10k(coco, root / "coco", image_mode="copy")
    shutil.copy(coco / "png164k" / "000000000139.png", root / "coco" / ".164k.png")
    for split, count in CAMVID_FRAMES.items():
        images = sorted((shared_data / "camvid" / "images" / split).glob("*.jpg"))
        for image in images[:: len(images) // count][:count]:
            for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
                target = root / "camvid" / kind / split / (image.stem + suffix)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(shared_data / "camvid" / kind / split / target.name, target)
    shutil.copy(shared_data / "camvid" / "classes.txt", root / "camvid")
    return root


def worrying(report):
    return [finding for finding in report.findings if finding.severity != "note"]


@pytest.mark.parametrize(
    ("name", "dataset", "pairs"),
    [
        ("ade20k", "ade20k", {"train": 2, "val": 3}),
        ("coco", "coco_stuff10k", {"train": 13, "val": 8}),
        ("pascal", "pascal_context59", {"train": 46, "val": 57}),
        ("camvid", "camvid", CAMVID_FRAMES),
    ],
)
def test_nothing_is_invented_on_clean_copies(clean, name, dataset, pairs):
    report = check_dataset(clean / name)
    assert report.dataset == dataset
    assert worrying(report) == []
    assert report.exit_code(strict=True) == 0
    assert {split: summary.pairs for split, summary in report.splits.items()} == pairs
    assert {split: summary.inspected for split, summary in report.splits.items()} == pairs
    spec = get_spec(dataset)
    for split in pairs:
        listed, findings = list_pairs(spec, clean / name, split)
        assert findings == []
        assert listed == find_pairs(spec, clean / name, split)


# ---- The faults -----------------------------------------------------------------------------


def replace_bytes(path, data):
    path.unlink()
    path.write_bytes(data)
    return path


def relabel(path, change, palette=((0, 0, 0),)):
    write_label_png(path, change(read_label(path)).astype(np.uint8), palette)
    return path


def relabel_all(folder, change):
    for path in sorted(folder.rglob("*.png")):
        relabel(path, change)


ADE_IMAGE = "images/validation/ADE_val_00000001.jpg"
ADE_LABEL = "annotations/validation/ADE_val_00000001.png"


def image_without_label(root):
    (root / ADE_LABEL).unlink()
    return root / ADE_IMAGE


def label_without_image(root):
    (root / ADE_IMAGE).unlink()
    return root / ADE_LABEL


def label_of_another_size(root):
    return relabel(root / ADE_LABEL, lambda a: a[:-1])


def image_turned_by_exif(root):
    path = root / ADE_IMAGE
    with Image.open(path) as picture:
        picture.load()
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(path, exif=exif)
    return root / ADE_LABEL


def colour_picture_as_label(root):
    path = root / ADE_LABEL
    ids = read_label(path)
    Image.fromarray(np.dstack([ids, ids, 255 - ids])).save(path)
    return path


def instance_ids_of_16_bits(root):
    path = root / ADE_LABEL
    wide = read_label(path).astype(np.uint16) + 1000
    assert cv2.imwrite(str(path), wide)
    return path


def truncated_image(root):
    path = root / ADE_IMAGE
    return replace_bytes(path, path.read_bytes()[: path.stat().st_size // 2])


def empty_image(root):
    return replace_bytes(root / ADE_IMAGE, b"")


def download_page_as_image(root):
    return replace_bytes(root / ADE_IMAGE, b"<html>quota exceeded</html>")


def truncated_label(root):
    path = root / ADE_LABEL
    return replace_bytes(path, path.read_bytes()[: path.stat().st_size // 2])


def flipped_bit_in_a_label(root):
    path = root / ADE_LABEL
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    return replace_bytes(path, bytes(data))


def one_pixel_beyond(root):
    def change(labels):
        labels[3, 4] = 151
        return labels

    return relabel(root / ADE_LABEL, change)


def two_images_of_one_stem(root):
    second = (root / ADE_IMAGE).with_suffix(".png")
    Image.open(root / ADE_IMAGE).save(second)
    return second


def labels_through_jpeg(root):
    def change(labels):
        return cv2.imdecode(cv2.imencode(".jpg", labels * 20)[1], cv2.IMREAD_GRAYSCALE)

    return relabel(sorted(root.glob("annotations/train/*.png"))[5], change)


def alpha_channel(root):
    path = sorted(root.glob("images/train/*.jpg"))[3]
    Image.open(path).convert("RGBA").save(path.with_suffix(".png"))
    path.unlink()
    return path.with_suffix(".png")


def already_reduced(root):
    relabel_all(root / "SegmentationClassContext", lambda a: a - 1)
    return root / "SegmentationClassContext"


def labels_of_the_164k_edition(root):
    path = root / "annotations" / "test2014" / "000000000139_labelTrainIds.png"
    shutil.copy(root / ".164k.png", path)
    return path


def ids_from_one(root):
    relabel_all(root / "annotations", lambda a: np.where(a == 255, 0, a + 1))
    return root / "annotations" / "train"


def void_stored_as_11(root):
    """As SegNet's release has it: not shifted, and the message must not say so."""
    relabel_all(root / "annotations", lambda a: np.where(a == 255, 11, a))
    return sorted(root.glob("annotations/train/*.png"))[0]


def ids_moved_down(root):
    relabel_all(root / "annotations", lambda a: np.where(a == 0, 255, np.where(a == 255, a, a - 1)))
    return root / "annotations" / "train"


def class_that_nobody_drew(root):
    relabel_all(root / "annotations", lambda a: np.where(a == 10, 255, a))
    return root


def label_without_labels(root):
    return relabel(sorted(root.glob("annotations/val/*.png"))[2], lambda a: a * 0 + 255)


def mostly_ignored(root):
    relabel_all(root / "annotations" / "val", lambda a: np.where((a == 8) | (a == 7), a, 255))
    return root / "annotations" / "val"


def only_one_class(root):
    relabel_all(root / "annotations" / "val", lambda a: a * 0 + 3)
    return root / "annotations" / "val"


def copy_pair(root, position, change=None):
    """Put a training frame into val under a new name."""
    image = sorted(root.glob("images/train/*.jpg"))[position]
    label = root / "annotations" / "train" / f"{image.stem}.png"
    target = root / "images" / "val" / "copy.jpg"
    if change is None:
        shutil.copy(image, target)
        shutil.copy(label, root / "annotations" / "val" / "copy.png")
        return target
    picture, labels = change(read_image(image), read_label(label))
    cv2.imwrite(str(target), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])
    write_label_png(root / "annotations" / "val" / "copy.png", labels, ((0, 0, 0),))
    return target


def training_image_in_val(root):
    return copy_pair(root, 7)


def saved_again_in_val(root):
    return copy_pair(root, 7, lambda i, a: (i, a))


def halved_in_val(root):
    def half(image, labels):
        small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_LINEAR)
        return small, np.ascontiguousarray(labels[::2, ::2])

    return copy_pair(root, 7, half)


def mirrored_in_val(root):
    return copy_pair(root, 7, lambda i, a: (i[:, ::-1], np.ascontiguousarray(a[:, ::-1])))


def edit_list(root, name, change):
    path = root / "ImageSets" / "SegmentationContext" / f"{name}.txt"
    lines = path.read_text().split()
    replace_bytes(path, ("\n".join(change(lines)) + "\n").encode())
    return path


def listed_stem_without_image(root):
    return edit_list(root, "val", lambda lines: [*lines, "2010_999999"])


def stem_listed_twice(root):
    return edit_list(root, "val", lambda lines: [*lines, lines[0]])


def stem_in_both_lists(root):
    path = root / "ImageSets" / "SegmentationContext" / "val.txt"
    stem = path.read_text().split()[0]
    edit_list(root, "train", lambda lines: [*lines, stem])
    return root / "JPEGImages" / f"{stem}.jpg"


def empty_list(root):
    return edit_list(root, "train", lambda lines: [])


def labels_elsewhere(root):
    (root / "annotations" / "validation").rename(root / "annotations" / "elsewhere")
    return root / "annotations" / "validation"


def unknown_format(root):
    for path in (root / "images" / "training").iterdir():
        path.rename(path.with_suffix(".heic"))
    return root / "images" / "training"


def label_in_capitals_of_another_size(root):
    label = relabel(root / ADE_LABEL, lambda a: a[:-1])
    return label.rename(label.with_suffix(".PNG"))


def one_image_to_split(root):
    """A custom folder whose split is automatic, as it is with a single image in it."""
    shutil.copytree(root / "images" / "train", root / "images" / "one")
    for path in sorted((root / "images" / "one").iterdir())[1:]:
        path.unlink()
    for split in ("train", "val", "test"):
        shutil.rmtree(root / "images" / split)
    stem = next((root / "images" / "one").iterdir()).stem
    for path in (root / "annotations").rglob("*.png"):
        if path.stem != stem:
            path.unlink()
    (root / "annotations" / "train").rename(root / "annotations" / "one")
    return root / "images"


@dataclass(frozen=True)
class Fault:
    dataset: str
    plant: Callable[[Path], Path]
    code: str
    severity: str = "error"
    also: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    says: str = ""


FAULTS = [
    Fault("ade20k", image_without_label, "missing-label"),
    Fault("ade20k", label_without_image, "orphan-label", "warning"),
    Fault("ade20k", label_of_another_size, "size-mismatch"),
    Fault("ade20k", label_in_capitals_of_another_size, "size-mismatch"),
    Fault("ade20k", image_turned_by_exif, "size-mismatch", says="EXIF"),
    Fault("ade20k", colour_picture_as_label, "label-colour", says="convert rgb"),
    Fault("ade20k", instance_ids_of_16_bits, "label-depth", says="instance"),
    Fault("ade20k", truncated_image, "image-unreadable"),
    Fault("ade20k", empty_image, "image-unreadable", says="empty"),
    Fault("ade20k", download_page_as_image, "image-unreadable"),
    Fault("ade20k", truncated_label, "label-unreadable"),
    Fault("ade20k", flipped_bit_in_a_label, "label-unreadable"),
    Fault("ade20k", one_pixel_beyond, "id-out-of-range", says="151"),
    Fault("ade20k", two_images_of_one_stem, "duplicate-stem"),
    Fault("ade20k", labels_elsewhere, "folder-missing", also=("missing-label",)),
    Fault("ade20k", unknown_format, "no-images", also=("orphan-label",)),
    Fault("camvid", labels_through_jpeg, "label-not-ids", says="JPEG"),
    Fault("camvid", alpha_channel, "image-depth", "warning"),
    Fault("pascal", already_reduced, "zero-reduced-twice", says="as they were published"),
    Fault("coco", labels_of_the_164k_edition, "sister-encoding", says="164k"),
    Fault("camvid", ids_from_one, "shifted-by-one", also=("sister-encoding",)),
    Fault("camvid", void_stored_as_11, "sister-encoding", says="data.ignore_index=11"),
    Fault("camvid", ids_moved_down, "shifted-by-one", also=("class-never-occurs",)),
    Fault("camvid", class_that_nobody_drew, "class-never-occurs", "warning", says="bicyclist"),
    Fault("camvid", label_without_labels, "nothing-labelled", "warning"),
    Fault("camvid", mostly_ignored, "mostly-ignored", "warning", also=("nothing-labelled",)),
    Fault("camvid", only_one_class, "single-class", "warning"),
    Fault("camvid", training_image_in_val, "leak-identical"),
    Fault("camvid", saved_again_in_val, "leak-near-identical", "warning"),
    Fault("camvid", halved_in_val, "leak-near-identical", "warning"),
    Fault("camvid", mirrored_in_val, "leak-near-identical", "warning", says="mirrored"),
    Fault("pascal", listed_stem_without_image, "list-without-image", says="2010_999999"),
    Fault("pascal", stem_listed_twice, "list-repeats"),
    Fault("pascal", stem_in_both_lists, "split-overlap", also=("leak-identical",)),
    Fault("pascal", empty_list, "list-unusable"),
    Fault(
        "camvid",
        one_image_to_split,
        "too-few-images",
        also=("orphan-label",),
        settings=(("dataset", "custom"),),
        says="a single image",
    ),
]


def test_there_are_at_least_18_kinds_of_faults():
    assert len({fault.code for fault in FAULTS}) >= 18


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.plant.__name__)
def test_a_planted_fault_is_found_and_nothing_else(clean, tmp_path, fault):
    root = tmp_path / fault.dataset
    shutil.copytree(clean / fault.dataset, root)
    where = fault.plant(root)
    data = guess_dataset(clean / fault.dataset).model_copy(
        update={"root": str(root), **dict(fault.settings)}
    )
    report = check_dataset(data)
    found = [f for f in report.findings if f.code == fault.code]
    assert str(where) in {finding.file for finding in found}
    assert {finding.severity for finding in found} == {fault.severity}
    assert {finding.code for finding in worrying(report)} <= {fault.code, *fault.also}
    mine = next(finding for finding in found if finding.file == str(where))
    assert fault.says in mine.message + mine.remedy
    assert mine.message and mine.remedy
    assert report.exit_code() == (1 if fault.severity == "error" else 0)
    assert report.exit_code(strict=True) == 1
    # An image in two splits spoils the score, but not the training.
    errors = {finding.code for finding in report.of("error")}
    assert training_starts(Config(data=data)) == (errors <= {"leak-identical"})


def test_prepared_10k_labels_in_a_164k_folder_are_found(clean, tmp_path):
    """The sister's mistake the other way round."""
    for split, theirs in (("train2014", "train2017"), ("test2014", "val2017")):
        for kind in ("images", "annotations"):
            shutil.copytree(clean / "coco" / kind / split, tmp_path / kind / theirs)
    report = check_dataset(DataConfig(dataset="coco_stuff164k", root=str(tmp_path)))
    codes = {finding.code for finding in report.findings if finding.severity == "error"}
    assert "sister-encoding" in codes or "shifted-by-one" in codes
    assert codes <= {"sister-encoding", "shifted-by-one"}


def test_many_faults_at_once_are_all_found(clean, tmp_path):
    root = tmp_path / "camvid"
    shutil.copytree(clean / "camvid", root)
    training_image_in_val(root)
    label_without_labels(root)
    labels_through_jpeg(root)
    alpha_channel(root)
    report = check_dataset(root)
    assert {finding.code for finding in worrying(report)} == {
        "leak-identical",
        "nothing-labelled",
        "label-not-ids",
        "image-depth",
    }
