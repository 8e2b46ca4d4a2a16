"""The published datasets: converted from both source forms, against the given ground truth."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cgrseg.data.convert import convert_coco_stuff10k, convert_pascal_context
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import find_pairs
from cgrseg.datasets import get_spec
from cgrseg.errors import DataError

scipy_io = pytest.importorskip("scipy.io", reason="MATLAB files need the extra 'convert'")


@pytest.fixture
def coco(shared_data):
    return shared_data / "cocostuff10k_samples"


@pytest.fixture
def pascal(shared_data):
    return shared_data / "pascal_context_samples"


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target


# ---- COCO-Stuff-10k -------------------------------------------------------------------------


def test_coco_labels_equal_the_164k_form_class_by_class(coco, tmp_path):
    """By name: what the dataset's own name list says, and what our class list says."""
    report = convert_coco_stuff10k(coco, tmp_path)
    assert (report.written, report.failures, report.exit_code) == (21, [], 0)
    assert report.lists == {"train": 13, "test": 8}
    published = {}
    for line in (coco / "cocostuff-labels.txt").read_text().splitlines():
        raw, name = line.split(": ")
        published[int(raw)] = name.strip()
    ours = {k + 1: name for k, name in enumerate(get_spec("coco_stuff10k").classes)}
    compared, seen = 0, set()
    for path in sorted(tmp_path.glob("annotations/*/*_labelTrainIds.png")):
        stem = path.name.removesuffix("_labelTrainIds.png")
        label, given = read_label(path), read_label(coco / "png164k" / f"{stem}.png")
        assert np.array_equal(label == 0, given == 255)
        for raw in np.unique(given[given != 255]):
            name = published[int(raw) + 1]
            values = np.unique(label[given == raw])
            assert [ours[int(v)] for v in values] == [name]
            assert np.array_equal(label == values[0], given == raw)
            seen.add(name)
        compared += 1
    assert compared == 21
    assert len(seen) == 87


def test_coco_result_is_the_layout_that_the_catalogue_reads(coco, tmp_path):
    convert_coco_stuff10k(coco, tmp_path)
    spec = get_spec("coco_stuff10k")
    train, test = find_pairs(spec, tmp_path, "train"), find_pairs(spec, tmp_path, "test")
    assert [pair.stem for pair in train] == sorted(
        (coco / "imageLists" / "train.txt").read_text().split()
    )
    assert len(test) == 8
    for pair in [*train, *test]:
        assert pair.label is not None
        label = spec.label_rule.apply(read_label(pair.label), source=pair.label)
        assert label.max() in {*range(171), 255}
        assert pair.image.read_bytes() == (coco / "images" / pair.image.name).read_bytes()


def test_coco_images_are_links_or_copies_as_asked(coco, tmp_path):
    source = copy_of(coco, tmp_path / "raw")
    convert_coco_stuff10k(source, tmp_path / "links", lists=["test"], image_mode="link")
    convert_coco_stuff10k(source, tmp_path / "copies", lists=["test"], image_mode="copy")
    for name, linked in (("links", True), ("copies", False)):
        images = sorted((tmp_path / name / "images" / "test2014").iterdir())
        assert len(images) == 8
        assert not (tmp_path / name / "images" / "train2014").exists()
        for image in images:
            assert image.samefile(source / "images" / image.name) == linked


def test_coco_converts_in_place(coco, tmp_path):
    source = copy_of(coco, tmp_path / "raw")
    assert convert_coco_stuff10k(source).written == 21
    assert len(list(source.glob("images/*.jpg"))) == 21
    assert len(find_pairs(get_spec("coco_stuff10k"), source, "train")) == 13


def test_coco_lists_with_windows_line_ends_work(coco, tmp_path):
    source = copy_of(coco, tmp_path / "raw")
    lines = (coco / "imageLists" / "test.txt").read_text().split()
    (source / "imageLists" / "test.txt").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode()
    )
    assert convert_coco_stuff10k(source, tmp_path / "out", lists=["test"]).written == 8


def test_coco_damage_is_named_and_skipped(coco, tmp_path):
    source = copy_of(coco, tmp_path / "raw")
    stems = (coco / "imageLists" / "train.txt").read_text().split()
    mats = [source / "annotations" / f"{stem}.mat" for stem in stems]
    mats[0].write_bytes(mats[0].read_bytes()[:200])
    tool = coco / "genuine_mat_tool" / "COCO_train2014_000000119938.mat"
    shutil.copy(tool, mats[1])
    mats[2].unlink()
    labels = scipy_io.loadmat(mats[3])["S"]
    labels[5, 5] = 12
    scipy_io.savemat(mats[3], {"S": labels})
    scipy_io.savemat(mats[4], {"S": scipy_io.loadmat(mats[4])["S"][:-1]})
    image = source / "images" / f"{stems[5]}.jpg"
    image.write_bytes(image.read_bytes()[:-4000])

    report = convert_coco_stuff10k(source, tmp_path / "out")
    assert (report.written, len(report.failures), report.exit_code) == (21 - 6, 6, 1)
    by_stem = {stem: message for stem in stems for message in _messages(report, stem)}
    assert "MATLAB file" in by_stem[stems[0]]
    assert "annotation tool" in by_stem[stems[1]]
    assert "labelMapThings" in by_stem[stems[1]]
    assert "no such file" in by_stem[stems[2]]
    assert "ids [12]" in by_stem[stems[3]]
    assert "image and label map of one size" in by_stem[stems[4]]
    assert "ends early" in by_stem[stems[5]]
    made = {path.name for path in (tmp_path / "out").glob("annotations/train2014/*.png")}
    assert made == {f"{stem}_labelTrainIds.png" for stem in stems[6:]}


def _messages(report, stem):
    return [failure.message for failure in report.failures if stem in failure.file]


def test_coco_an_image_in_both_lists_is_an_error(coco, tmp_path):
    source = copy_of(coco, tmp_path / "raw")
    both = (source / "imageLists" / "test.txt").read_text().split()[0]
    with (source / "imageLists" / "train.txt").open("a") as stream:
        stream.write(f"{both}\n")
    report = convert_coco_stuff10k(source, tmp_path / "out")
    assert report.exit_code == 1
    assert [failure.file for failure in report.failures] == [both]


@pytest.mark.parametrize("missing", ["annotations", "images", "imageLists"])
def test_coco_something_else_than_the_download_is_refused(coco, tmp_path, missing):
    source = copy_of(coco, tmp_path / "raw")
    shutil.rmtree(source / missing)
    with pytest.raises(DataError, match=f"no folder '{missing}'"):
        convert_coco_stuff10k(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_coco_lists_cannot_point_outside(coco, tmp_path):
    source = copy_of(coco, tmp_path / "raw")
    (source / "imageLists" / "train.txt").write_text("../secret\n")
    with pytest.raises(DataError, match="without folders"):
        convert_coco_stuff10k(source, tmp_path / "out", lists=["train"])


# ---- Pascal Context -------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "mat"])
def test_pascal_labels_equal_the_given_ones_pixel_for_pixel(pascal, tmp_path, form):
    lists = pascal / "ImageSets" / "SegmentationContext"
    if form == "json":
        report = convert_pascal_context(pascal / "trainval_merged.json", tmp_path)
    else:
        report = convert_pascal_context(pascal / "labels459_mat", tmp_path, lists=lists)
    assert (report.written, report.failures) == (103, [])
    given = sorted((pascal / "SegmentationClassContext").glob("*.png"))
    assert len(given) == 103
    for path in given:
        made = read_label(tmp_path / "SegmentationClassContext" / path.name)
        assert np.array_equal(made, read_label(path)), path.name
    for name, count in (("train", 46), ("val", 57)):
        made = (tmp_path / "ImageSets" / "SegmentationContext" / f"{name}.txt").read_text().split()
        assert sorted(made) == sorted((lists / f"{name}.txt").read_text().split())
        assert report.lists[name] == len(made) == count


def test_pascal_result_is_the_layout_that_the_catalogue_reads(pascal, tmp_path):
    shutil.copytree(pascal / "JPEGImages", tmp_path / "JPEGImages")
    report = convert_pascal_context(pascal / "trainval_merged.json", tmp_path)
    assert report.notes == []
    spec = get_spec("pascal_context59")
    assert len(find_pairs(spec, tmp_path, "train")) == 46
    assert len(find_pairs(spec, tmp_path, "val")) == 57


def test_pascal_lists_come_from_voc_when_nobody_names_others(pascal, tmp_path):
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name in ("train", "val"):
        given = (pascal / "ImageSets" / "SegmentationContext" / f"{name}.txt").read_text()
        (main / f"{name}.txt").write_text(given + f"2010_99999{len(name)}\n")
    report = convert_pascal_context(pascal / "labels459_mat", tmp_path)
    assert report.lists == {"train": 46, "val": 57}


def test_pascal_existing_lists_are_not_shortened(pascal, tmp_path):
    lists = tmp_path / "ImageSets" / "SegmentationContext"
    shutil.copytree(pascal / "ImageSets" / "SegmentationContext", lists)
    (lists / "train.txt").write_text((lists / "train.txt").read_text() + "2010_000001\n")
    before = (lists / "train.txt").read_bytes()
    report = convert_pascal_context(pascal / "trainval_merged.json", tmp_path)
    assert (lists / "train.txt").read_bytes() == before
    assert any("stays as it is" in note for note in report.notes)
    assert report.lists == {"val": 57}


def test_pascal_without_lists_says_so(pascal, tmp_path):
    report = convert_pascal_context(pascal / "labels459_mat", tmp_path)
    assert report.written == 103
    assert any("no split lists" in note for note in report.notes)


def test_pascal_a_damaged_region_skips_its_image_only(pascal, tmp_path):
    data = json.loads((pascal / "trainval_merged.json").read_text())
    first = data["annos_segmentation"][0]
    first["segmentation"]["counts"] = first["segmentation"]["counts"][:-3]
    (tmp_path / "trainval_merged.json").write_text(json.dumps(data))
    report = convert_pascal_context(tmp_path / "trainval_merged.json", tmp_path / "out")
    assert (report.written, len(report.failures), report.exit_code) == (102, 1, 1)
    assert "image 2008_000008.jpg, region 1" in report.failures[0].message
    assert report.lists == {"train": 45, "val": 57}
    shutil.copy(pascal / "trainval_merged.json", tmp_path / "trainval_merged.json")
    again = convert_pascal_context(tmp_path / "trainval_merged.json", tmp_path / "out")
    assert again.exit_code == 0
    assert again.lists == {"train": 46, "val": 57}


def test_pascal_ids_with_other_names_are_refused(pascal, tmp_path):
    data = json.loads((pascal / "trainval_merged.json").read_text())
    data["categories"][3]["name"] = "cloud"
    (tmp_path / "other.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"category 19 is called 'cloud'"):
        convert_pascal_context(tmp_path / "other.json", tmp_path / "out")


def test_pascal_a_file_that_is_no_json_is_refused(pascal, tmp_path):
    text = (pascal / "trainval_merged.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"download trainval_merged\.json again"):
        convert_pascal_context(tmp_path / "cut.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pascal_labels_beyond_the_459_are_refused(pascal, tmp_path):
    source = tmp_path / "mat"
    source.mkdir()
    scipy_io.savemat(source / "2008_000001.mat", {"LabelMap": np.full((3, 4), 460)})
    report = convert_pascal_context(source, tmp_path / "out")
    assert report.exit_code == 1
    assert "460" in report.failures[0].message
