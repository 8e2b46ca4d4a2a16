"""Class lists, folders and settings: what is found, and what is refused in words."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.config.schema import DataConfig
from cgrseg.data.pairs import find_pairs, split_stems
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets import get_spec, list_specs
from cgrseg.datasets.spec import HeldOut, distinct_colors
from cgrseg.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def ade(root: Path, images: list[str], labels: list[str]) -> None:
    touch(root, *(f"images/training/{n}" for n in images))
    touch(root, *(f"annotations/training/{n}" for n in labels))


def test_published_class_counts_and_ends_of_the_lists() -> None:
    expected = {
        "ade20k": (150, "wall", "flag"),
        "coco_stuff10k": (171, "person", "wood"),
        "coco_stuff164k": (171, "person", "wood"),
        "pascal_context59": (59, "aeroplane", "wood"),
        "pascal_context60": (60, "background", "wood"),
        "cityscapes": (19, "road", "bicycle"),
        "camvid": (11, "sky", "bicyclist"),
        "voc2012": (21, "background", "tvmonitor"),
        "synthetic": (11, "sky", "balloon"),
    }
    found = {
        name: (get_spec(name).num_classes, get_spec(name).classes[0], get_spec(name).classes[-1])
        for name in expected
    }
    assert found == expected
    assert list_specs() == list(expected)


@pytest.mark.parametrize("name", list_specs())
def test_every_spec_is_complete(name: str) -> None:
    spec = get_spec(name)
    assert {"train", "val"} <= set(spec.splits)
    assert all(0 <= value <= 255 for colour in spec.palette for value in colour)
    assert len(spec.palette) == spec.num_classes
    assert spec.how_to_get and spec.default_root.startswith("data/")


def test_class_names_follow_the_published_lists(shared_data: Path) -> None:
    lines = (shared_data / "ade20k_samples/objectInfo150.txt").read_text().splitlines()[1:]
    ade_names = [line.split("\t")[4].split(",")[0].strip() for line in lines]
    ours = get_spec("ade20k").classes
    differing = {(a, b) for a, b in zip(ade_names, ours, strict=True) if a != b}
    assert differing == {("television", "television receiver")}

    coco = (shared_data / "cocostuff10k_samples/cocostuff-labels.txt").read_text().splitlines()
    by_id = {int(line.split(":")[0]): line.split(":")[1].strip() for line in coco}
    raw_rule = get_spec("coco_stuff164k").label_rule
    for raw in sorted(raw_rule.allowed - {255}):
        assert get_spec("coco_stuff164k").classes[raw_rule.lookup[raw]] == by_id[raw + 1]

    camvid = (shared_data / "camvid/classes.txt").read_text().split()
    assert get_spec("camvid").classes == tuple(camvid)

    context = (shared_data / "pascal_context_samples/classes.txt").read_text().splitlines()
    assert get_spec("pascal_context60").classes == tuple(line.split()[-1] for line in context)


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cityscapes'"):
        get_spec("cityscape")


class TestPairs:
    def test_pairs_are_matched_by_stem_and_sorted(self, tmp_path: Path) -> None:
        ade(tmp_path, ["b.jpg", "a.JPG", ".hidden.jpg", "notes.txt"], ["a.png", "b.png"])
        pairs = find_pairs(get_spec("ade20k"), tmp_path, "train")
        assert [(p.stem, p.image.name, p.label and p.label.name) for p in pairs] == [
            ("a", "a.JPG", "a.png"),
            ("b", "b.jpg", "b.png"),
        ]

    def test_missing_labels_are_named_and_orphans_counted(self, tmp_path: Path) -> None:
        ade(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["b.png", "x.png", "y.png"])
        with pytest.raises(DataError) as caught:
            find_pairs(get_spec("ade20k"), tmp_path, "train")
        assert "an image has no label (2x)" in str(caught.value)
        assert "a.jpg: no label" in str(caught.value)
        assert "c.jpg: no label" in str(caught.value)
        assert "labels without an image: x.png, y.png" in str(caught.value)

    def test_labels_without_image_are_counted_in_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ade(tmp_path, ["a.jpg"], ["a.png", "x.png"])
        with caplog.at_level(logging.WARNING, logger="cgrseg.data"):
            assert len(find_pairs(get_spec("ade20k"), tmp_path, "train")) == 1
        assert "x.png: no image of the stem 'x'" in caplog.text

    def test_two_images_of_one_stem(self, tmp_path: Path) -> None:
        ade(tmp_path, ["a.jpg", "a.png"], ["a.png"])
        with pytest.raises(DataError, match=r"a\.png: the same stem as a\.jpg"):
            find_pairs(get_spec("ade20k"), tmp_path, "train")

    def test_missing_root_says_what_to_fetch(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"ADEChallengeData2016\.zip"):
            find_pairs(get_spec("ade20k"), tmp_path / "nowhere", "train")

    def test_root_one_level_too_high_shows_what_is_there(self, tmp_path: Path) -> None:
        ade(tmp_path / "ADEChallengeData2016", ["a.jpg"], ["a.png"])
        with pytest.raises(DataError, match=r"set data\.root .* to .*/ADEChallengeData2016"):
            find_pairs(get_spec("ade20k"), tmp_path, "train")

    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "images/training").mkdir(parents=True)
        with pytest.raises(
            DataError, match=r"no images in it; it is empty(.|\n)*cgrseg data fetch ade20k"
        ):
            find_pairs(get_spec("ade20k"), tmp_path, "train")

    def test_labels_of_the_other_encoding_are_not_taken(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/test2014/a.jpg", "annotations/test2014/a.png")
        with pytest.raises(DataError, match=r"_labelTrainIds\.png; a\.png is there"):
            find_pairs(get_spec("coco_stuff10k"), tmp_path, "test")

    def test_unknown_split_lists_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="one of train, val, test"):
            find_pairs(get_spec("ade20k"), tmp_path, "validation")

    def test_lists_give_order_and_membership(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"JPEGImages/{s}.jpg" for s in "abcd"))
        touch(tmp_path, *(f"SegmentationClassContext/{s}.png" for s in "abc"))
        lists = tmp_path / "ImageSets/SegmentationContext"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("c\n\na.jpg\n")
        pairs = find_pairs(get_spec("pascal_context59"), tmp_path, "train")
        assert [p.stem for p in pairs] == ["c", "a"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a\nz\n", "'z' is listed, but has no image"),
            ("a\na\n", "'a' is listed 2 times"),
            ("", "the list is empty"),
            ("d\n", r"d\.jpg: no label of the stem 'd'"),
        ],
    )
    def test_lists_that_do_not_match(self, tmp_path: Path, text: str, message: str) -> None:
        touch(tmp_path, "JPEGImages/a.jpg", "JPEGImages/d.jpg", "SegmentationClassContext/a.png")
        lists = tmp_path / "ImageSets/SegmentationContext"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            find_pairs(get_spec("pascal_context60"), tmp_path, "train")

    def test_missing_list(self, tmp_path: Path) -> None:
        touch(tmp_path, "JPEGImages/a.jpg", "SegmentationClass/a.png")
        (tmp_path / "ImageSets").mkdir()
        with pytest.raises(DataError, match=r"val\.txt(.|\n)*cannot be read"):
            find_pairs(get_spec("voc2012"), tmp_path, "val")

    def test_cityscapes_folders_and_both_encodings(self, tmp_path: Path) -> None:
        for city, number in (("aachen", 19), ("bochum", 20)):
            stem = f"{city}_000000_0000{number}"
            touch(tmp_path, f"leftImg8bit/train/{city}/{stem}_leftImg8bit.png")
            touch(tmp_path, f"gtFine/train/{city}/{stem}_gtFine_labelIds.png")
            touch(tmp_path, f"gtFine/train/{city}/{stem}_gtFine_color.png")
        touch(tmp_path, "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png")
        pairs = find_pairs(get_spec("cityscapes"), tmp_path, "train")
        assert [p.stem for p in pairs] == [
            "aachen/aachen_000000_000019",
            "bochum/bochum_000000_000020",
        ]
        names = [p.label.name.rsplit("_", 1)[1] for p in pairs if p.label]
        assert names == ["labelTrainIds.png", "labelIds.png"]

    def test_a_split_without_labels(self, tmp_path: Path) -> None:
        touch(tmp_path, "leftImg8bit/test/berlin/b_leftImg8bit.png")
        assert [p.label for p in find_pairs(get_spec("cityscapes"), tmp_path, "test")] == [None]


class TestEdits:
    def data(self, **changes: object) -> DataConfig:
        return DataConfig(dataset="camvid", root="data/camvid", **changes)  # type: ignore[arg-type]

    def test_merge_rename_and_drop(self) -> None:
        spec = resolve_spec(
            self.data(
                merge={"person": ["bicyclist", "pedestrian"], "ground": ["road", "sidewalk"]},
                rename={"tree": "vegetation"},
                drop=["sky", "pole"],
            )
        )
        assert spec.classes == (
            "building",
            "ground",
            "vegetation",
            "sign_symbol",
            "fence",
            "car",
            "person",
        )
        raw = np.arange(11, dtype=np.uint8)[None]
        got = spec.label_rule.apply(raw, source=Path("a.png"))
        # sky building pole road sidewalk tree sign fence car pedestrian bicyclist
        assert got.tolist() == [[255, 0, 255, 1, 1, 2, 3, 4, 5, 6, 6]]
        assert spec.palette[1] == (128, 64, 128)  # of the road, the first member

    def test_a_merge_may_keep_the_name_of_a_member(self) -> None:
        spec = resolve_spec(self.data(merge={"road": ["sidewalk", "road"]}))
        got = spec.label_rule.apply(np.array([[3, 4]], np.uint8), source=Path("a.png"))
        assert got.tolist() == [[3, 3]]
        assert spec.num_classes == 10

    def test_all_encodings_are_edited(self) -> None:
        spec = resolve_spec(DataConfig(dataset="cityscapes", drop=["road"]))
        raw_rule = spec.rule_for(Path("a_gtFine_labelIds.png"))
        got = raw_rule.apply(np.array([[7, 8]], np.uint8), source=Path("a"))
        assert got.tolist() == [[255, 0]]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"drop": ["buildng"]}, "such as building"),
            ({"drop": ["sky"], "rename": {"sky": "air"}}, "mentioned twice"),
            ({"rename": {"sky": "car"}}, "two classes would be called 'car'"),
            ({"merge": {"car": ["road", "sidewalk"]}}, "two classes would be called 'car'"),
            ({"merge": {"nothing": []}}, "has no members"),
            ({"drop": list(get_spec("camvid").classes)}, "no class is left"),
        ],
    )
    def test_edits_that_make_no_sense(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            resolve_spec(self.data(**changes))


class TestSettingsOfTheCatalogue:
    def test_class_list_of_a_known_dataset_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.rename"):
            resolve_spec(DataConfig(dataset="ade20k", classes=["a", "b"]))

    def test_zero_is_ignore_is_not_applied_twice(self) -> None:
        with pytest.raises(ConfigError, match="nothing has to be subtracted"):
            resolve_spec(DataConfig(dataset="ade20k", zero_is_ignore=True))

    def test_ignore_index_among_the_classes(self) -> None:
        with pytest.raises(ConfigError, match="is the id of"):
            resolve_spec(DataConfig(dataset="ade20k", ignore_index=149))

    def test_ignore_index_elsewhere(self) -> None:
        spec = resolve_spec(DataConfig(dataset="ade20k", ignore_index=254))
        assert (spec.ignore_index, spec.label_rule.lookup[0]) == (254, 254)

    def test_camvid_with_classes_in_another_order(self, tmp_path: Path) -> None:
        names = list(get_spec("camvid").classes)
        (tmp_path / "classes.txt").write_text("\n".join(names[::-1]))
        with pytest.raises(DataError, match="bicyclist, pedestrian"):
            resolve_spec(DataConfig(dataset="camvid", root=str(tmp_path)))
        (tmp_path / "classes.txt").write_text("\n".join(names))
        assert resolve_spec(DataConfig(dataset="camvid", root=str(tmp_path))).num_classes == 11

    def test_palette_of_another_length(self) -> None:
        with pytest.raises(ConfigError, match="1 colors for 150 classes"):
            resolve_spec(DataConfig(palette=[(0, 0, 0)]))


class TestCustom:
    def data(self, root: Path, **changes: object) -> DataConfig:
        return DataConfig(dataset="custom", root=str(root), **changes)  # type: ignore[arg-type]

    def test_class_file_in_id_order(self, tmp_path: Path) -> None:
        touch(tmp_path, "images/a.jpg")
        (tmp_path / "classes.txt").write_text(
            "# id order\r\n\nsky\nroad \n\n", encoding="utf-8-sig"
        )
        spec = resolve_spec(self.data(tmp_path))
        assert spec.classes == ("sky", "road")
        assert spec.palette == ((128, 0, 0), (0, 128, 0))
        assert spec.label_rule.lookup[:3] == (0, 1, 255)

    def test_zero_is_ignore(self, tmp_path: Path) -> None:
        spec = resolve_spec(self.data(tmp_path, classes=["cat", "dog"], zero_is_ignore=True))
        assert spec.label_rule.lookup[:4] == (255, 0, 1, 255)
        assert spec.label_rule.allowed == {0, 1, 2, 255}

    def test_void_id_above_the_classes(self, tmp_path: Path) -> None:
        spec = resolve_spec(self.data(tmp_path, classes=["cat", "dog"], ignore_index=2))
        got = spec.label_rule.apply(np.array([[0, 1, 2, 255]], np.uint8), source=Path("a"))
        assert got.tolist() == [[0, 1, 2, 2]]
        assert spec.ignore_index == 2

    @pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "validation")])
    def test_split_folders(self, tmp_path: Path, train: str, val: str) -> None:
        for split, stem in ((train, "a"), (val, "b")):
            touch(tmp_path, f"images/{split}/{stem}.jpg", f"annotations/{split}/{stem}.png")
        spec = resolve_spec(self.data(tmp_path, classes=["x"]))
        assert sorted(spec.splits) == ["train", "val"]
        assert [p.stem for p in find_pairs(spec, tmp_path, "train")] == ["a"]
        assert [p.stem for p in find_pairs(spec, tmp_path, "val")] == ["b"]

    def test_split_in_the_folder_name(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/rgb/a.png", "train/ids/a.png", "val/rgb/b.png", "val/ids/b.png")
        config = self.data(tmp_path, classes=["x"], images="{split}/rgb", labels="{split}/ids")
        spec = resolve_spec(config)
        assert [p.stem for p in find_pairs(spec, tmp_path, "val")] == ["b"]

    def test_split_lists(self, tmp_path: Path) -> None:
        for stem in "abc":
            touch(tmp_path, f"images/{stem}.jpg", f"annotations/{stem}.png")
        (tmp_path / "train.txt").write_text("b\na\n")
        (tmp_path / "val.txt").write_text("c\n")
        config = self.data(
            tmp_path, classes=["x"], split_lists={"train": "train.txt", "val": "val.txt"}
        )
        spec = resolve_spec(config)
        assert [p.stem for p in find_pairs(spec, tmp_path, "train")] == ["b", "a"]

    def test_automatic_split(self, tmp_path: Path) -> None:
        for number in range(40):
            touch(tmp_path, f"images/{number}.jpg", f"annotations/{number}.png")
        parts = {}
        for seed in (0, 1):
            spec = resolve_spec(self.data(tmp_path, classes=["x"], split_seed=seed))
            train = {p.stem for p in find_pairs(spec, tmp_path, "train")}
            val = {p.stem for p in find_pairs(spec, tmp_path, "val")}
            assert train | val == {str(n) for n in range(40)} and not train & val
            assert 2 <= len(val) <= 16  # 20 % of 40 by chance
            parts[seed] = val
        assert parts[0] != parts[1]

    def test_no_class_list(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"classes\.txt(.|\n)*set data\.classes"):
            resolve_spec(self.data(tmp_path))

    def test_missing_root(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"set data\.root"):
            resolve_spec(self.data(tmp_path / "nowhere"))

    def test_repeated_names(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="'a' stands at id 0 and again at id 2"):
            resolve_spec(self.data(tmp_path, classes=["a", "b", "a"]))

    def test_ignore_index_among_the_classes(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"data\.drop"):
            resolve_spec(self.data(tmp_path, classes=["a", "b"], ignore_index=0))


@given(
    stems=st.sets(st.text("abcdef0123456789", min_size=1), min_size=2, max_size=60),
    seed=st.integers(0, 9),
    fraction=st.floats(0, 1),
)
def test_automatic_splits_are_a_partition_with_both_parts(
    stems: set[str], seed: int, fraction: float
) -> None:
    train = split_stems(stems, HeldOut(seed, fraction, validation=False))
    val = split_stems(stems, HeldOut(seed, fraction, validation=True))
    assert set(train) | set(val) == stems
    assert not set(train) & set(val)
    assert train and val
    assert train == sorted(train)


@given(
    stems=st.sets(st.text("abcdef", min_size=1), min_size=3, max_size=40),
    extra=st.text("ghij", min_size=1),
)
def test_adding_a_file_moves_at_most_the_two_extreme_ones(stems: set[str], extra: str) -> None:
    rule = HeldOut(0, 0.3, validation=True)
    before, after = set(split_stems(stems, rule)), set(split_stems(stems | {extra}, rule))
    assert len((before ^ after) - {extra}) <= 2


def test_distinct_colours_differ_and_leave_black_out() -> None:
    colours = distinct_colors(255)
    assert len(set(colours)) == 255
    assert (0, 0, 0) not in colours
    assert colours[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))


@pytest.mark.parametrize("count", [255, 256, 300])
def test_labels_of_8_bits_hold_255_classes(tmp_path: Path, count: int) -> None:
    config = DataConfig(
        dataset="custom", root=str(tmp_path), classes=[f"class {k}" for k in range(count)]
    )
    if count == 255:
        assert resolve_spec(config).num_classes == 255
    else:
        with pytest.raises(ConfigError, match=rf"data\.classes: {count} class names\n.*1 to 255"):
            resolve_spec(config)
