"""Folders as people have them: read, or named with the setting that reads them."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgrseg.config.schema import DataConfig
from cgrseg.config.settings import parse_overrides
from cgrseg.data.check import check_dataset
from cgrseg.data.check.classes import refuse_nothing_to_learn
from cgrseg.data.guess import guess_dataset
from cgrseg.data.label_files import read_label
from cgrseg.data.pair_files import load_label
from cgrseg.data.pairs import find_pairs, list_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import ConfigError, DataError
from tests.data import folders


def custom(root: Path, **settings: object) -> DataConfig:
    return DataConfig(dataset="custom", root=str(root), **settings)  # type: ignore[arg-type]


def proposed(text: str) -> dict[str, object]:
    """Settings that a message proposes, as `data.KEY=VALUE`."""
    found = re.findall(r"'(data\.\w+=[^']+)'|(data\.\w+=[^\s;,:'()]+)", text)
    changes = parse_overrides([one or other for one, other in found])
    return {key.removeprefix("data."): value for key, value in changes.items()}


def codes(report) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity != "note"}


def labels_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Label files that the search for two classes reads from now on."""
    read: list[Path] = []

    def noted(path: Path) -> np.ndarray:
        read.append(path)
        return read_label(path)

    monkeypatch.setattr("cgrseg.data.check.classes.read_label", noted)
    return read


# ---- Encodings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "code", "stored", "ids"),
    [
        (folders.binary, "binary-labels", [0, 255], [0, 1]),
        (folders.gray_values, "stored-values", [0, 128, 255], [0, 1, 2]),
    ],
)
def test_stored_values_are_named_with_the_setting_that_reads_them(
    tmp_path, make, code, stored, ids
):
    root = make(tmp_path)
    report = check_dataset(root)
    error = report.findings[0]
    assert (error.severity, error.code) == ("error", code)
    assert all(str(value) in error.message for value in stored)
    settings = proposed(error.remedy)
    assert len(settings) == 1
    config = custom(root, **settings)
    assert codes(check_dataset(config)) == set()
    spec = resolve_spec(config)
    pair = find_pairs(spec, root, "train")[0]
    assert pair.label is not None
    read = read_label(pair.label)
    expected = np.zeros_like(read)
    for value, new in zip(stored, ids, strict=True):
        expected[read == value] = new
    assert np.array_equal(load_label(spec, pair), expected)


def test_one_class_and_its_background(tmp_path):
    root = folders.foreground_only(tmp_path)
    for settings in ({}, {"zero_is_ignore": True}, {"ignore_index": 1}):
        error = check_dataset(custom(root, **settings)).findings[0]
        assert error.code == "one-class"
        assert "write background as the first line" in error.remedy
        # No remedy leads to a network of one class.
        assert "zero_is_ignore=true" not in error.remedy
        assert "ignore_index=1" not in error.remedy
    (root / "classes.txt").write_text("background\ncrack\n")
    assert codes(check_dataset(root)) == set()


def test_a_training_split_without_labels_is_found_also_by_the_quick_check(tmp_path):
    root = folders.all_ignored(tmp_path)
    for report in (check_dataset(root), check_dataset(custom(root), quick=True)):
        errors = [f for f in report.findings if f.severity == "error"]
        assert [error.code for error in errors] == ["nothing-to-learn"]
        assert "no pixel of it is labeled" in errors[0].message


def test_labels_of_other_ids_alone_are_called_what_they_are(tmp_path):
    root = folders.write_folder(tmp_path, make=lambda k: folders.labels(k, 7, 9))
    assert codes(check_dataset(root)) == {"stored-values", "id-out-of-range"}
    config = custom(root)
    spec = resolve_spec(config)
    with pytest.raises(DataError, match="ids outside the class list: 7"):
        refuse_nothing_to_learn(spec, root, "train", find_pairs(spec, root, "train"))


def test_the_quick_check_reads_on_until_there_are_two_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("cgrseg.data.check.QUICK_LABELS", 2)
    root = folders.write_folder(
        tmp_path,
        images="images/train",
        annotations="annotations/train",
        stems=[f"{k:02}" for k in range(24)],
        make=lambda k: folders.labels(0, 0, 1 if k == 13 else 0),
    )
    folders.splits(root, "val")
    read = labels_read(monkeypatch)
    assert check_dataset(custom(root), quick=True).of("error") == []
    assert 0 < len(read) <= 22
    folders.save_label(root / "annotations/train/13.png", folders.labels(0, 0, 0))
    [error] = check_dataset(custom(root), quick=True).of("error")
    assert error.code == "nothing-to-learn"
    assert "only 'sky' is labeled" in error.message


def test_an_ordinary_split_costs_one_label(tmp_path, monkeypatch):
    root = folders.write_folder(tmp_path)
    spec = resolve_spec(custom(root))
    read = labels_read(monkeypatch)
    refuse_nothing_to_learn(spec, root, "train", find_pairs(spec, root, "train"))
    assert len(read) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_threshold": 128, "classes": ["a", "b", "c"]}, "set for 3 classes"),
        ({"label_threshold": 128, "zero_is_ignore": True}, "set together with data.zero_is_ignore"),
        ({"label_values": {0: 0, 255: 2}}, "class ids \\[0, 2\\] for 2 classes"),
        ({"label_values": {0: 0}}, "class ids \\[0\\] for 2 classes"),
    ],
)
def test_encodings_that_contradict_the_classes(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve_spec(custom(folders.write_folder(tmp_path), **settings))


def test_values_that_are_not_named_stop_and_255_ignores(tmp_path):
    root = folders.gray_values(tmp_path)
    spec = resolve_spec(custom(root, classes=["a", "b"], label_values={0: 0, 128: 1}))
    assert spec.label_rule.lookup[255] == 255
    spec = resolve_spec(custom(root, classes=["a", "b"], label_values={0: 255, 128: 1, 7: 0}))
    assert spec.label_rule.lookup[0] == 255
    pair = find_pairs(spec, root, "train")[0]
    assert pair.label is not None
    folders.save_label(pair.label, folders.labels(0, 0, 9))
    with pytest.raises(DataError, match="ids outside the class list: 9 "):
        load_label(spec, pair)


def test_settings_of_custom_folders_are_refused_elsewhere(tmp_path):
    for settings in ({"label_threshold": 1}, {"label_values": {0: 0}}, {"label_name": "{stem}_m"}):
        with pytest.raises(ConfigError, match=r"data\.dataset=custom"):
            resolve_spec(DataConfig(dataset="ade20k", root=str(tmp_path), **settings))


# ---- Formats --------------------------------------------------------------------------------


def palette_mask(values: np.ndarray) -> Image.Image:
    picture = Image.fromarray(values).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 7, 7, 7])
    return picture


@pytest.mark.parametrize("ending", ["bmp", "tif"])
@pytest.mark.parametrize(
    "save",
    [
        Image.fromarray,
        lambda values: Image.fromarray(values == 1),
        palette_mask,
    ],
)
def test_label_formats_that_keep_every_value(tmp_path, ending, save):
    values = folders.labels(3)
    save(values).save(tmp_path / f"a.{ending}")
    assert np.array_equal(read_label(tmp_path / f"a.{ending}"), values)
    data = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_label(tmp_path / f"cut.{ending}")


def test_labels_that_hold_no_ids(tmp_path):
    Image.fromarray(folders.COLORS[folders.labels(0)]).save(tmp_path / "color.bmp")
    with pytest.raises(DataError, match=r"3 channels"):
        read_label(tmp_path / "color.bmp")
    Image.fromarray(folders.labels(0) + np.float32(0.5)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="with fractions"):
        read_label(tmp_path / "float.tif")
    page = Image.fromarray(folders.labels(0))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match="2 pages"):
        read_label(tmp_path / "pages.tif")


@pytest.mark.parametrize("ending", ["bmp", "tif"])
def test_folders_of_such_labels_pass(tmp_path, ending):
    root = folders.write_folder(tmp_path, label_name=f"{{stem}}.{ending}")
    assert codes(check_dataset(root)) == set()


def test_a_label_that_went_through_jpeg_is_refused_whatever_its_name(tmp_path):
    mask = Image.fromarray(np.random.default_rng(0).integers(0, 3, folders.SIZE, dtype=np.uint8))
    mask.save(tmp_path / "a.png", format="JPEG")
    mask.save(tmp_path / "a.tif", compression="jpeg")
    for name in ("a.png", "a.tif"):
        with pytest.raises(DataError, match="compressed as JPEG"):
            read_label(tmp_path / name)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("black_is_zero", [0, 1])
def test_gray_tiff_files_hold_their_stored_values(tmp_path, bits, black_is_zero):
    packed = {2: b"\x1b", 4: b"\x01\x23", 8: b"\0\1\2\3"}[bits]  # the values 0, 1, 2, 3
    fields = {
        256: 4,
        257: 1,
        258: bits,
        259: 1,
        262: black_is_zero,
        273: 8,
        277: 1,
        278: 1,
        279: len(packed),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    header = b"II*\0" + struct.pack("<I", 8 + 4) + packed.ljust(4, b"\0")
    data = header + struct.pack("<H", len(fields)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(data)
    assert read_label(tmp_path / "a.tif").tolist() == [[0, 1, 2, 3]]


def test_a_second_label_of_an_image_is_named(tmp_path):
    root = folders.write_folder(tmp_path)
    folders.save_label(root / "annotations" / "0.tif", folders.labels(5))
    report = check_dataset(root)
    [warning] = report.of("warning")
    assert (warning.code, Path(warning.file).name) == ("duplicate-stem", "0.tif")
    assert "0.png, which is read" in warning.message


def test_a_threshold_where_images_and_labels_share_a_folder(tmp_path):
    root = folders.write_folder(
        tmp_path, annotations="images", make=lambda k: folders.labels(k, 0, 255)
    )
    config = custom(root, labels="images")
    [error] = check_dataset(config).of("error")
    assert proposed(error.remedy) == {"label_threshold": 128}
    assert codes(check_dataset(custom(root, labels="images", label_threshold=128))) == set()


def test_jpeg_masks_are_named_and_read_by_a_threshold(tmp_path):
    root = folders.other_format(tmp_path, "jpg")
    report = check_dataset(root)
    assert codes(report) == {"missing-label"}
    error = report.findings[0]
    assert "0.jpg is there" in error.message
    assert "JPEG changes values" in error.remedy
    config = custom(root, **proposed(error.remedy))
    assert config.label_threshold == 128
    assert codes(check_dataset(config)) == set()
    spec = resolve_spec(config)
    for pair in find_pairs(spec, root, "train"):
        expected = folders.labels(int(pair.stem), 0, 1)
        assert np.mean(load_label(spec, pair) != expected) < 0.02


# ---- Names and folders ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [folders.decomposed, folders.pascal, folders.split_first, folders.one_bit],
)
def test_folders_that_are_read_as_they_are(tmp_path, make):
    report = check_dataset(make(tmp_path))
    assert codes(report) == set()
    assert sum(split.pairs for split in report.splits.values()) >= 4


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (folders.deeper, {"labels": "annotations/masks"}),
        (folders.masks_with_addition, {"label_name": "{stem}_mask"}),
    ],
)
def test_labels_elsewhere_are_named_with_the_setting(tmp_path, make, setting):
    root = make(tmp_path)
    error = check_dataset(root).findings[0]
    assert error.code == "missing-label"
    assert proposed(error.remedy) == setting
    assert codes(check_dataset(custom(root, **setting))) == set()


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("images/{}", "annotations/{}/masks"),
        ("{}/images", "{}/masks/deep"),
        ("{}/images/0", "{}/masks"),
    ],
)
@pytest.mark.parametrize("names", [("train", "val"), ("Train", "dev")])
def test_labels_elsewhere_in_folders_of_splits(tmp_path, images, annotations, names):
    for name in names:
        stems = [f"{name}{k}" for k in range(4)]
        folders.write_folder(
            tmp_path, images=images.format(name), annotations=annotations.format(name), stems=stems
        )
    remedies = {finding.remedy for finding in check_dataset(tmp_path).of("error")}
    if names == ("train", "val"):
        settings = [proposed(remedy) for remedy in remedies]
        assert settings[0] == settings[-1]  # of both splits
        assert codes(check_dataset(custom(tmp_path, **settings[0]))) == set()
    else:  # no setting fits such names
        assert all("move them into" in remedy for remedy in remedies)
        assert not any(proposed(remedy) for remedy in remedies)


def test_braces_in_names_of_folders_are_names(tmp_path):
    for split in ("train", "val"):
        stems = [f"{split}{k}" for k in range(4)]
        folders.write_folder(
            tmp_path, images=f"{split}/{{0}}", annotations=f"{split}/{{a.b}}", stems=stems
        )
    config = custom(tmp_path, images="{split}/{0}", labels="{split}/{a.b}")
    assert codes(check_dataset(config)) == set()


def test_images_in_a_deeper_folder_than_their_labels(tmp_path):
    root = folders.write_folder(tmp_path, images="images/photos")
    error = check_dataset(root).findings[0]
    assert proposed(error.remedy) == {"images": "images/photos"}


def test_a_label_of_another_image_is_never_proposed(tmp_path):
    root = folders.write_folder(tmp_path, stems=("1", "10", "11", "12"))
    (root / "annotations" / "1.png").unlink()
    [error] = check_dataset(root).of("error")
    assert error.remedy == "add the label, or move the image away"
    (root / "images" / "11.jpg").unlink()
    [error] = check_dataset(root).of("error")
    assert "rename" not in error.remedy
    assert "11.png" in error.remedy  # named as a label without an image, no more


def test_a_link_that_leads_back_is_one_message(tmp_path):
    root = folders.link_back(tmp_path)
    (root / "images" / "up").symlink_to("..")
    (root / "annotations" / "again").symlink_to(".")
    report = check_dataset(root)
    assert codes(report) == {"link-loop"}
    assert sorted(Path(f.file).name for f in report.findings) == ["again", "again", "up"]
    assert sum(split.pairs for split in report.splits.values()) == 4


def test_links_that_lead_to_each_other_end(tmp_path):
    root = folders.write_folder(tmp_path)
    for one, other in (("a", "b"), ("b", "a")):
        (root / "images" / one).mkdir()
        (root / "images" / one / "x").symlink_to(f"../{other}")
    assert codes(check_dataset(root)) == {"link-loop"}


@pytest.mark.parametrize("below", ["mine", "deep/mine"])
def test_a_root_above_the_dataset_names_it(tmp_path, below):
    folders.write_folder(tmp_path / below)
    for find in (guess_dataset, lambda root: resolve_spec(custom(root))):
        with pytest.raises(DataError, match=f"set data\\.root={tmp_path}/{below} "):
            find(tmp_path)


def test_a_root_inside_the_dataset_names_it(tmp_path):
    folders.write_folder(tmp_path / "mine")
    with pytest.raises(DataError, match=f"set data\\.root={tmp_path}/mine "):
        resolve_spec(custom(tmp_path / "mine" / "images"))


def test_a_missing_root_is_one_error(tmp_path):
    config = DataConfig(dataset="ade20k", root=str(tmp_path / "nowhere"))
    [error] = check_dataset(config).findings
    assert error.code == "folder-missing"
    assert error.file == config.root


def test_color_masks_of_cvat_are_told_by_their_table(tmp_path):
    root = folders.write_folder(
        tmp_path, images="JPEGImages", annotations="SegmentationClass", classes=None
    )
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\n")
    with pytest.raises(DataError, match=r"data convert rgb \S+/JPEGImages \S+/SegmentationClass"):
        guess_dataset(root)


def test_coco_stuff_as_it_is_downloaded_names_its_conversion(shared_data):
    root = shared_data / "cocostuff10k_samples"
    with pytest.raises(DataError, match=rf"data convert coco-stuff10k {root} --out OUT"):
        guess_dataset(root)


# ---- Splits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("Train", "Val"), ("train", "dev"), ("TRAINING", "Validation"), ("train", "valid")],
)
def test_folders_of_splits_in_any_case(tmp_path, names):
    report = check_dataset(folders.splits(tmp_path, *names))
    assert codes(report) == set()
    assert {name: split.pairs for name, split in report.splits.items()} == {"train": 4, "val": 4}
    assert [split.source for split in report.splits.values()] == [f"images/{n}" for n in names]


def test_images_of_no_split_are_named(tmp_path):
    root = folders.splits(tmp_path, "train", "val", "extra")
    folders.save_image(root / "images" / "loose.jpg", 0)
    report = check_dataset(root)
    assert codes(report) == {"folder-left-out"}
    assert [Path(f.file).name for f in report.findings] == ["extra", "images"]
    assert codes(check_dataset(custom(root, eval_split="extra"))) == {"folder-left-out"}


def test_a_training_split_alone_says_how_to_go_on(tmp_path):
    root = folders.splits(tmp_path, "train")
    report = check_dataset(root)
    [error] = report.of("error")
    assert error.code == "split-missing"
    settings = proposed(error.remedy)
    assert codes(check_dataset(custom(root, **settings))) == set()
    assert check_dataset(custom(root), evaluate=False).ok


def test_pascal_context_without_lists_as_announced(tmp_path, shared_data):
    source = shared_data / "pascal_context_samples"
    for name in ("JPEGImages", "SegmentationClassContext"):
        shutil.copytree(source / name, tmp_path / name)
    folders.save_image(tmp_path / "JPEGImages" / "unlabeled.jpg", 0)
    config = guess_dataset(tmp_path)
    assert config.dataset == "pascal_context59"
    report = check_dataset(config)
    assert report.ok
    assert "layout" in codes(report)
    assert report.splits["train"].pairs + report.splits["val"].pairs == 103
    (tmp_path / "ImageSets").mkdir()
    assert "list-unusable" in codes(check_dataset(config))


# ---- Lists ----------------------------------------------------------------------------------

FORMS = {
    "stems": "{0}",
    "images": "{0}.jpg",
    "pairs": "images/{0}.jpg annotations/{0}.png",
    "commas": "images/{0}.jpg,annotations/{0}.png",
    "tabs": "images/{0}.jpg\tannotations/{0}.png",
    "absolute": "{root}/images/{0}.jpg",
    "elsewhere": "/home/somebody/mine/images/{0}.jpg",
    "relative": "./images/{0}.jpg",
    "from above": "mine/images/{0}.jpg mine/annotations/{0}.png",
    "flags": "{0} -1",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["plain", "backslashes", "utf-16", "commented"])
def test_split_lists_in_the_forms_of_other_tools(tmp_path, form, how):
    stems = ["day/0", "day/with blank", "day/2", "day/3"]
    root = folders.write_folder(tmp_path / "mine", stems=stems)
    for split, chosen in (("train", stems[:3]), ("val", stems[3:])):
        text = "".join(FORMS[form].format(stem, root=root) + "\n" for stem in chosen)
        if how == "backslashes" and form != "absolute":
            text = text.replace("/", "\\")
        if how == "commented":
            text = f"# {split}\n\n{text}"
        encoding = "utf-16" if how == "utf-16" else "utf-8"
        (root / f"{split}.txt").write_text(text, encoding=encoding)
    config = custom(root, split_lists={"train": "train.txt", "val": "val.txt"})
    assert codes(check_dataset(config)) == set()
    pairs = find_pairs(resolve_spec(config), root, "train")
    assert [pair.stem for pair in pairs] == stems[:3]
    assert [pair.label for pair in pairs] == [root / f"annotations/{s}.png" for s in stems[:3]]


def test_a_list_may_pair_labels_of_other_names(tmp_path):
    root = folders.write_folder(tmp_path, annotations="truth", label_name="{stem}_gt.png")
    lines = [f"images/{k}.jpg truth/{k}_gt.png" for k in range(4)]
    (root / "train.txt").write_text("\n".join(lines[:3]))
    (root / "val.txt").write_text("\n".join([*lines[3:], "images/0.jpg truth/none.png"]))
    config = custom(root, labels="truth", split_lists={"train": "train.txt", "val": "val.txt"})
    spec = resolve_spec(config)
    assert [p.label.name for p in find_pairs(spec, root, "train")] == [
        f"{k}_gt.png" for k in range(3)
    ]
    _, findings = list_pairs(spec, root, "val")
    assert "truth/none.png" in next(f.message for f in findings if f.code == "list-without-label")


def test_a_list_gives_no_jpeg_file_as_a_label(tmp_path):
    root = folders.write_folder(tmp_path, annotations="masks", label_name="{stem}.jpg")
    (root / "train.txt").write_text("".join(f"{k}.jpg masks/{k}.jpg\n" for k in range(4)))
    config = custom(root, labels="masks", split_lists={"train": "train.txt", "val": "train.txt"})
    _, findings = list_pairs(resolve_spec(config), root, "train")
    found = next(finding for finding in findings if finding.code == "list-without-label")
    assert "masks/0.jpg" in found.message and "ends in .png" in found.message
    assert "JPEG changes values" in found.remedy


def test_a_list_of_other_files_says_what_it_holds(tmp_path):
    root = folders.write_folder(tmp_path)
    (root / "train.txt").write_text("a,b,c\nd,e,f\n")
    config = custom(root, split_lists={"train": "train.txt", "val": "train.txt"})
    with pytest.raises(DataError, match=r"none of its 2 lines(.|\n)*'a,b,c'(.|\n)*image and its"):
        find_pairs(resolve_spec(config), root, "train")
