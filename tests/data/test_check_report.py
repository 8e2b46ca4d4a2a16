"""The parts of the doctor by themselves, with answers worked out by hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgrseg.config.schema import DataConfig
from cgrseg.data import check
from cgrseg.data.check import check_dataset
from cgrseg.data.check.encoding import Tally, looks_shifted, position_score
from cgrseg.data.check.leakage import nearest
from cgrseg.data.check.pair import Facts, Job, inspect_pair
from cgrseg.data.check.report import CheckReport
from cgrseg.data.guess import guess_dataset
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets import get_spec
from cgrseg.datasets.findings import Finding
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.errors import DataError

PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def write_pair(root, split, stem, labels):
    rng = np.random.default_rng(sum(map(ord, split + stem)))
    image = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    write_image(root / "images" / split / f"{stem}.jpg", image)
    write_label_png(root / "annotations" / split / f"{stem}.png", labels, PALETTE)


@pytest.fixture
def custom(tmp_path):
    """Nine training and three validation pictures: sky above, road below, a tree."""
    labels = np.zeros((20, 30), np.uint8)
    labels[10:] = 1
    labels[5:15, 12:18] = 2
    for split, count in (("train", 9), ("val", 3)):
        for k in range(count):
            write_pair(tmp_path, split, f"{split}{k}", labels)
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    return tmp_path


def test_the_histogram_by_hand(custom):
    report = check_dataset(custom)
    assert report.findings == []
    # 300 pixels above and 300 below, of which the tree takes 30 each.
    assert report.histogram() == {
        "train": {"sky": 9 * 270, "road": 9 * 270, "tree": 9 * 60},
        "val": {"sky": 3 * 270, "road": 3 * 270, "tree": 3 * 60},
    }
    train = report.splits["train"]
    assert (train.pairs, train.inspected, train.images, train.ignored) == (9, 9, (9, 9, 9), 0)
    assert train.sizes == ((20, 30), (20, 30))


def test_the_report_is_json_and_words(custom):
    (custom / "annotations" / "train" / "train3.png").unlink()
    report = check_dataset(custom)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["ok"] is False
    assert plain["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert plain["findings"][0]["code"] == "missing-label"
    assert plain["findings"][0]["file"].endswith("train3.jpg")
    assert plain["splits"]["val"]["pixels"] == [810, 810, 180]
    text = report.text()
    assert "error: an image has no label (missing-label, 1x)" in text
    assert "what to do: add the label" in text
    assert "train (images/train): 8 pairs" in text


def test_a_label_with_an_addition_to_its_name_is_recognised(custom):
    label = custom / "annotations" / "train" / "train3.png"
    label.rename(label.with_name("train3_mask.png"))
    report = check_dataset(custom)
    remedy = next(f.remedy for f in report.findings if f.code == "missing-label")
    assert remedy == "rename train3_mask.png, if that is its label: it must be called train3.png"


def test_long_lists_of_one_kind_are_cut_in_words_only():
    report = CheckReport("custom", "data", ("a",))
    report.add(
        Finding("error", "missing-label", f"{k}.jpg", "no label", "add it") for k in range(9)
    )
    assert "4 more of this kind" in report.text()
    assert report.text().count("what to do: add it") == 1
    assert len(report.to_dict()["findings"]) == 9


def test_findings_are_worst_first_and_never_twice():
    report = CheckReport("custom", "data", ("a",))
    note = Finding("note", "duplicate-image", "a", "m", "r")
    error = Finding("error", "missing-label", "b", "m", "r")
    report.add([note, error, note])
    report.add([error])
    assert report.findings == [error, note]


def test_errors_stop_a_run_with_the_files_name(custom):
    bad = np.zeros((20, 30), np.uint8)
    bad[0, 0] = 7
    write_pair(custom, "train", "train5", bad)
    report = check_dataset(DataConfig(dataset="custom", root=str(custom)), quick=True)
    with pytest.raises(DataError, match=r"train5\.png: ids 7"):
        report.raise_for_errors()
    check_dataset(custom / ".", splits=["val"]).raise_for_errors()


def test_a_missing_split_is_an_error_not_a_crash(custom):
    config = DataConfig(dataset="custom", root=str(custom), eval_split="nightly")
    report = check_dataset(config, quick=True)
    assert [finding.code for finding in report.findings] == ["split-missing"]
    assert "'nightly'" in report.findings[0].message


def test_the_quick_check_reads_a_part_of_large_splits(custom, monkeypatch):
    monkeypatch.setattr(check, "QUICK_LABELS", 4)
    monkeypatch.setattr(check, "QUICK_IMAGES", 2)
    (custom / "images" / "train" / "train1.jpg").write_bytes(b"")
    report = check_dataset(DataConfig(dataset="custom", root=str(custom)), quick=True)
    # 9 > 2 * 4: four of the training labels; 3 <= 2 * 4: all of validation.
    assert {name: split.inspected for name, split in report.splits.items()} == {
        "train": 4,
        "val": 3,
    }
    assert report.findings == []
    assert report.quick


@given(st.integers(0, 5000), st.integers(1, 600))
def test_samples_are_spread_evenly(length, count):
    chosen = check.spread(length, count)
    assert len(chosen) == min(length, count)
    gaps = set(np.diff([*chosen, length]))
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    assert chosen[:1] == [0][:length]


def test_five_hundred_of_a_thousand_and_one():
    assert len(check.spread(1001, 500)) == 500
    assert check.spread(7, 3) == [0, 2, 4]


def test_the_quick_check_looks_at_the_splits_asked_for(custom):
    report = check_dataset(
        DataConfig(dataset="custom", root=str(custom)), splits=["val"], quick=True
    )
    assert list(report.splits) == ["val"]


def test_processes_and_threads_see_the_same(custom):
    for k in range(20):
        shutil.copy(
            custom / "images" / "train" / "train0.jpg", custom / "images" / "val" / f"x{k}.jpg"
        )
    told = []
    alone = check_dataset(
        custom, workers=1, progress=lambda done, total: told.append((done, total))
    )
    shared = check_dataset(custom, workers=2)
    assert told == [(k, 12) for k in range(1, 13)]
    assert alone.findings == shared.findings
    assert alone.splits == shared.splits


# ---- Positions ------------------------------------------------------------------------------


def tally_of(centres, seen=10):
    tally = Tally(labels=seen)
    for raw, centre in centres.items():
        tally.seen[raw] = seen
        tally.centers[raw] = centre * seen
        tally.pixels[raw] = tally.files[raw] = 100
    return tally


def test_the_position_score_by_hand():
    classes, rule = ("sky", "tree", "road"), LabelRule.identity(3)
    tally = tally_of({0: 0.1, 1: 0.4, 2: 0.8, 3: 0.5})
    score, kinds, seen = position_score(tally, classes, rule, 0)
    assert score == pytest.approx((0.4 + 0.3) / 2)
    assert (kinds, seen) == (2, 20)
    # One off, "sky" finds the tree and "road" what lies in the middle.
    assert position_score(tally, classes, rule, 1)[0] == pytest.approx((0.1 + 0.0) / 2)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_shift_is_recognised_in_both_directions(shift):
    classes, rule = ("wall", "sky", "lamp", "road", "box"), LabelRule.reduce_zero(5)
    true = {1: 0.5, 2: 0.15, 3: 0.5, 4: 0.8, 5: 0.5}
    assert (
        looks_shifted(tally_of({raw + shift: c for raw, c in true.items()}), classes, rule) == shift
    )


def test_ids_one_too_far_without_known_places_name_both_ways_out(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    for split in ("train", "val"):
        write_pair(tmp_path, split, split, labels)
    (tmp_path / "classes.txt").write_text("bolt\nnut\nwasher\n")
    report = check_dataset(tmp_path)
    remedy = next(f.remedy for f in report.findings if f.code == "shifted-by-one")
    assert "data.zero_is_ignore=true" in remedy
    assert "data.ignore_index=3" in remedy


def test_too_few_sightings_prove_nothing():
    classes, rule = ("wall", "sky", "lamp", "road", "box"), LabelRule.reduce_zero(5)
    shifted = {0: 0.5, 1: 0.15, 2: 0.5, 3: 0.8, 4: 0.5}
    assert looks_shifted(tally_of(shifted, seen=2), classes, rule) == 0
    assert looks_shifted(tally_of(shifted, seen=3), classes, rule) == -1


# ---- Leaks ----------------------------------------------------------------------------------


def picture(name, grey):
    return Facts("train", name, thumb=np.clip(grey, 0, 255).astype(np.uint8).tobytes())


def test_the_nearest_picture_by_hand():
    rng = np.random.default_rng(0)
    grey = rng.integers(20, 230, (32, 32))
    pool = [picture("other", rng.integers(0, 256, (32, 32))), picture("same", grey)]
    [(name, distance, mirrored)] = nearest([picture("q", grey + 2)], pool)
    assert (name, mirrored) == ("same", False)
    assert distance == pytest.approx(2.0)
    assert nearest([picture("q", grey[:, ::-1])], pool) == [("same", 0.0, True)]
    assert nearest([picture("q", np.full((32, 32), 90))], pool)[0][1] == float("inf")
    assert nearest([picture("q", grey)], [])[0][1] == float("inf")


# ---- Which dataset --------------------------------------------------------------------------


def test_folders_tell_which_dataset_they_are(shared_data, custom):
    assert guess_dataset(shared_data / "camvid").dataset == "camvid"
    assert guess_dataset(shared_data / "ade20k_samples").dataset == "ade20k"
    assert guess_dataset(custom).dataset == "custom"


def test_an_ade_layout_with_a_class_list_is_custom(shared_data, tmp_path):
    shutil.copytree(shared_data / "ade20k_samples", tmp_path / "mine")
    (tmp_path / "mine" / "classes.txt").write_text("a\nb\n")
    assert guess_dataset(tmp_path / "mine").dataset == "custom"


def test_a_folder_without_the_training_split_is_an_error_as_in_training(custom):
    shutil.rmtree(custom / "images" / "train")
    config = guess_dataset(custom)
    [error] = check_dataset(config).of("error")
    assert error.code == "split-missing"
    assert "'train'" in error.message
    assert check_dataset(config, splits=["val"]).ok


@pytest.mark.parametrize("inside", [(), ("photos", "masks")])
def test_a_folder_of_no_dataset_says_what_is_there(tmp_path, inside):
    for name in inside:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"photos|nothing"):
        guess_dataset(tmp_path)


def test_a_merged_class_list_is_judged_as_it_is_used(shared_data):
    config = DataConfig(
        dataset="ade20k",
        root=str(shared_data / "ade20k_samples"),
        merge={"building or house": ["building", "house"]},
    )
    report = check_dataset(config)
    assert len(report.classes) == get_spec("ade20k").num_classes - 1
    assert report.ok
    plain = check_dataset(shared_data / "ade20k_samples")
    counts, merged = plain.histogram()["val"], report.histogram()["val"]
    assert merged["building or house"] == counts["building"] + counts["house"] > 0


def test_neighbouring_frames_of_a_moving_camera_are_no_copies(shared_data, tmp_path):
    """A fifteenth of a second apart: similar, but not the same picture."""
    for split, frame in (("train", "0016E5_07979"), ("val", "0016E5_07981")):
        for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
            target = tmp_path / kind / split / f"{frame}{suffix}"
            target.parent.mkdir(parents=True)
            shutil.copy(shared_data / "camvid" / kind / "val" / target.name, target)
    report = check_dataset(DataConfig(dataset="camvid", root=str(tmp_path)))
    assert {split: summary.inspected for split, summary in report.splits.items()} == {
        "train": 1,
        "val": 1,
    }
    assert [finding.code for finding in report.findings if "leak" in finding.code] == []


# ---- What training refuses ------------------------------------------------------------------


def cityscapes(root, ending="_gtFine_labelIds.png", splits=("train", "val", "test")):
    """The layout of the raw download, with one frame a split."""
    labels = np.full((20, 30), 23, np.uint8)
    labels[10:] = 7
    rng = np.random.default_rng(0)
    for split in splits:
        name = f"{split}/bonn/{split}_000000_000019"
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        write_image(root / "leftImg8bit" / f"{name}_leftImg8bit.png", image)
        if split != "test":
            write_label_png(root / "gtFine" / f"{name}{ending}", labels, PALETTE)
    return root


def test_a_split_without_labels_cannot_score(tmp_path):
    config = DataConfig(dataset="cityscapes", root=str(cityscapes(tmp_path)), eval_split="test")
    for report in (check_dataset(config), check_dataset(config, quick=True)):
        [error] = report.of("error")
        assert error.code == "split-unlabelled"
        assert "train or val" in error.remedy
    assert check_dataset(config, splits=["train"], quick=True).ok


@pytest.mark.parametrize("ending", ["_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"])
def test_both_forms_of_cityscapes_are_recognised(tmp_path, ending):
    config = guess_dataset(cityscapes(tmp_path, ending))
    assert config.dataset == "cityscapes"


def test_labels_in_capitals_get_their_own_rule(tmp_path):
    cityscapes(tmp_path, "_gtFine_LABELIDS.PNG")
    report = check_dataset(tmp_path)
    assert report.dataset == "cityscapes"
    assert report.of("error") == []
    present = {name for name, count in report.histogram()["train"].items() if count}
    assert present == {"sky", "road"}


@pytest.mark.parametrize("drop", [["sky"], []])
def test_dropping_the_first_class_is_no_second_reduction(custom, drop):
    labels = np.zeros((20, 30), np.uint8)
    labels[10:], labels[0, 0] = 1, 255  # the last class, "tree", nowhere
    for split, count in (("train", 9), ("val", 3)):
        for k in range(count):
            write_pair(custom, split, f"{split}{k}", labels)
    report = check_dataset(DataConfig(dataset="custom", root=str(custom), drop=drop))
    assert "zero-reduced-twice" not in {finding.code for finding in report.findings}


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_byte_order_mark_in_a_split_list_does_no_harm(tmp_path, name):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    for stem in ("a", "b"):
        write_pair(tmp_path, "", stem, labels)
    (tmp_path / "classes.txt").write_text("bolt\nnut\nwasher\n")
    for split, stem in (("train", "a"), ("val", "b")):
        mark = b"\xef\xbb\xbf" if split == name else b""
        (tmp_path / f"{split}.txt").write_bytes(mark + stem.encode() + b"\r\n")
    config = DataConfig(
        dataset="custom",
        root=str(tmp_path),
        split_lists={"train": "train.txt", "val": "val.txt"},
    )
    report = check_dataset(config)
    assert report.of("error") == []
    assert {split: summary.pairs for split, summary in report.splits.items()} == {
        "train": 1,
        "val": 1,
    }
    pairs = find_pairs(resolve_spec(config), tmp_path, name)
    assert [pair.stem for pair in pairs] == ["a" if name == "train" else "b"]


def header_of(path):
    pair = Pair(path.stem, path, None)
    return inspect_pair(Job("train", pair, LabelRule.identity(3), decode_image=False))


def test_a_damaged_orientation_is_left_to_the_decoder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)
    assert header_of(path).size == (30, 20)
    data = path.read_bytes()
    for short, undefined in (
        (b"\x01\x12\x00\x03", b"\x01\x12\x00\x07"),
        (b"\x12\x01\x03\x00", b"\x12\x01\x07\x00"),
    ):
        data = data.replace(short, undefined)
    assert data != path.read_bytes()
    path.write_bytes(data)
    with Image.open(path) as picture:
        assert isinstance(picture.getexif()[0x0112], bytes)
    assert header_of(path).size == (20, 30)
    assert header_of(path).findings == []


def test_pictures_beyond_the_limit_of_pillow(tmp_path, monkeypatch):
    before = Image.MAX_IMAGE_PIXELS
    Image.new("1", (15000, 12000)).save(tmp_path / "large.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    assert header_of(tmp_path / "large.png").size == (12000, 15000)
    assert before == Image.MAX_IMAGE_PIXELS
    # A colour picture of that size as a label is called what it is.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    write_image(tmp_path / "color.png", np.full((20, 30, 3), (0, 0, 9), np.uint8))
    pair = Pair("x", tmp_path / "large.png", tmp_path / "color.png")
    facts = inspect_pair(Job("train", pair, LabelRule.identity(3), decode_image=False))
    assert facts.findings[0].code == "label-colour"
