"""What stored ids become, and which of them stop the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cgrseg.datasets import get_spec
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.errors import DataError

SOURCE = Path("annotations/street_017.png")


def row(*ids: int) -> np.ndarray:
    return np.array([ids], dtype=np.uint8)


def test_reduce_zero_moves_every_class_down_and_ignores_zero_and_255() -> None:
    rule = LabelRule.reduce_zero(150)
    assert rule.apply(row(0, 1, 2, 150, 255), source=SOURCE).tolist() == [[255, 0, 1, 149, 255]]


def test_identity_keeps_zero_as_a_class() -> None:
    rule = LabelRule.identity(11)
    assert rule.apply(row(0, 10, 255), source=SOURCE).tolist() == [[0, 10, 255]]


def test_from_mapping_sends_ids_where_told() -> None:
    rule = LabelRule.from_mapping({7: 0, 200: 1}, ignored=(3,))
    assert rule.apply(row(7, 200, 3), source=SOURCE).tolist() == [[0, 1, 255]]
    assert rule.forbidden_ids(row(7, 0, 255, 255)) == [0, 255]


@pytest.mark.parametrize(
    ("mapping", "ignored"),
    [({0: 0, 1: 2}, (255,)), ({255: 0}, (255,)), ({256: 0}, ()), ({-1: 0}, ())],
    ids=["gap", "class and ignored", "nine bits", "negative"],
)
def test_from_mapping_refuses_nonsense(mapping: dict[int, int], ignored: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"gaps|both|8 bits"):
        LabelRule.from_mapping(mapping, ignored=ignored)


def test_forbidden_ids_name_the_file_the_ids_and_the_class_count() -> None:
    with pytest.raises(DataError) as caught:
        LabelRule.reduce_zero(150).apply(row(0, 1, 151, 151), source=SOURCE)
    message = str(caught.value)
    assert str(SOURCE) in message
    assert "151 (50.00 % of pixels)" in message
    assert "150 classes" in message
    assert "0..151" in message


def test_one_based_labels_are_recognised() -> None:
    rule = LabelRule.identity(3)
    assert "zero_is_ignore" in rule.advice(row(0, 1, 2, 3))
    assert "zero_is_ignore" not in rule.advice(row(0, 1, 2, 9))


def test_a_grey_colour_mask_is_recognised() -> None:
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert "convert rgb" in LabelRule.identity(3).advice(raw)


@given(
    raw=arrays.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7))),
    num_classes=st.integers(1, 254),
    reduce=st.booleans(),
)
def test_apply_agrees_with_the_definition_pixel_by_pixel(
    raw: np.ndarray, num_classes: int, reduce: bool
) -> None:
    rule = LabelRule.reduce_zero(num_classes) if reduce else LabelRule.identity(num_classes)
    shift = 1 if reduce else 0
    ignored = {0, 255} if reduce else {255}
    classes = set(range(shift, num_classes + shift)) - ignored
    wrong = sorted({int(k) for k in raw.flat} - classes - ignored)
    assert rule.forbidden_ids(raw) == wrong
    if wrong:
        with pytest.raises(DataError, match="street_017"):
            rule.apply(raw, source=SOURCE)
    else:
        expected = [[255 if k in ignored else k - shift for k in line] for line in raw.tolist()]
        assert rule.apply(raw, source=SOURCE).tolist() == expected


@given(
    keep=st.lists(st.booleans(), min_size=1, max_size=30).filter(any),
    raw=st.integers(0, 29),
)
def test_remapping_equals_mapping_twice(keep: list[bool], raw: int) -> None:
    new_ids: list[int | None] = []
    for kept in keep:
        new_ids.append(sum(k is not None for k in new_ids) if kept else None)
    rule = LabelRule.identity(len(keep))
    raw %= len(keep)
    wanted = new_ids[raw]
    got = rule.remapped(new_ids).apply(row(raw, 255), source=SOURCE)
    assert got.tolist() == [[255 if wanted is None else wanted, 255]]


def test_another_ignore_index_reaches_every_ignored_pixel() -> None:
    rule = LabelRule.reduce_zero(150).with_ignore_index(200)
    assert rule.apply(row(0, 1, 255), source=SOURCE).tolist() == [[200, 0, 200]]


class TestCocoStuff:
    """Two encodings of one class list; ids checked by hand in the dataset's labels.txt."""

    def test_prepared_10k(self) -> None:
        spec = get_spec("coco_stuff10k")
        got = spec.label_rule.apply(row(0, 1, 11, 12, 171), source=SOURCE)
        names = [spec.classes[k] for k in got[0, 1:]]
        assert got[0, 0] == 255
        assert names == ["person", "fire hydrant", "stop sign", "wood"]

    def test_raw_164k(self) -> None:
        spec = get_spec("coco_stuff164k")
        got = spec.label_rule.apply(row(0, 10, 12, 89, 91, 181, 255), source=SOURCE)
        names = [spec.classes[k] for k in got[0, :-1]]
        assert names == ["person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood"]
        assert got[0, -1] == 255

    def test_prepared_164k_is_told_by_its_ending(self) -> None:
        spec = get_spec("coco_stuff164k")
        prepared = spec.rule_for(Path("000000000139_labelTrainIds.png"))
        assert prepared.apply(row(0, 11, 170, 255), source=SOURCE).tolist() == [[0, 11, 170, 255]]
        assert spec.rule_for(Path("000000000139.png")) is spec.label_rule

    @pytest.mark.parametrize("raw", [row(1, 255), row(1, 181), row(172)])
    def test_164k_given_as_10k(self, raw: np.ndarray) -> None:
        with pytest.raises(DataError, match="COCO-Stuff 164k"):
            get_spec("coco_stuff10k").label_rule.apply(raw, source=SOURCE)

    def test_mat_ids_given_as_10k(self) -> None:
        with pytest.raises(DataError, match=r"raw \.mat files"):
            get_spec("coco_stuff10k").label_rule.apply(row(0, 182), source=SOURCE)

    @pytest.mark.parametrize("unused", [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90])
    def test_ids_that_coco_never_annotated_are_refused_in_164k(self, unused: int) -> None:
        with pytest.raises(DataError, match="coco_stuff10k"):
            get_spec("coco_stuff164k").label_rule.apply(row(0, unused), source=SOURCE)

    def test_prepared_10k_given_as_prepared_164k(self) -> None:
        rule = get_spec("coco_stuff164k").rule_for(Path("a_labelTrainIds.png"))
        with pytest.raises(DataError, match="looks like COCO-Stuff 10k"):
            rule.apply(row(0, 171), source=SOURCE)


class TestCityscapes:
    def test_raw_ids(self) -> None:
        spec = get_spec("cityscapes")
        rule = spec.rule_for(Path("aachen_000000_000019_gtFine_labelIds.png"))
        got = rule.apply(row(7, 26, 33, 0, 29), source=SOURCE)
        assert [spec.classes[k] for k in got[0, :3]] == ["road", "car", "bicycle"]
        assert got[0, 3:].tolist() == [255, 255]

    def test_raw_ids_under_the_name_of_prepared_ones(self) -> None:
        rule = get_spec("cityscapes").rule_for(Path("a_gtFine_labelTrainIds.png"))
        with pytest.raises(DataError, match="raw Cityscapes ids"):
            rule.apply(row(7, 33), source=SOURCE)


def test_pascal_context_59_is_60_without_the_background() -> None:
    spec59, spec60 = get_spec("pascal_context59"), get_spec("pascal_context60")
    raw = row(0, 1, 59, 255)
    assert spec59.label_rule.apply(raw, source=SOURCE).tolist() == [[255, 0, 58, 255]]
    assert spec60.label_rule.apply(raw, source=SOURCE).tolist() == [[0, 1, 59, 255]]
    assert spec60.classes == ("background", *spec59.classes)


def test_segnet_camvid_with_11_for_void_says_what_to_do() -> None:
    with pytest.raises(DataError, match="ignore_index=11"):
        get_spec("camvid").label_rule.apply(row(0, 11), source=SOURCE)


def test_ids_of_both_coco_stuff_forms_get_both_hints() -> None:
    rule = get_spec("coco_stuff10k").label_rule
    both = rule.advice(row(0, 175))
    assert "data convert coco-stuff10k" in both and "coco_stuff164k" in both
    assert "this looks like COCO-Stuff 164k" in rule.advice(row(0, 175, 255))
    assert "raw .mat files" in rule.advice(row(0, 175, 182))


@given(
    st.frozensets(st.integers(0, 254), min_size=1, max_size=254),
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
)
def test_check_finds_exactly_the_forbidden_ids(classes: frozenset[int], ids: list[int]) -> None:
    rule = LabelRule.from_mapping({raw: new for new, raw in enumerate(sorted(classes))})
    if set(ids) <= classes | {255}:
        rule.check(row(*ids), source=SOURCE)
    else:
        with pytest.raises(DataError, match="ids outside the class list"):
            rule.check(row(*ids), source=SOURCE)


def test_advice_after_edits_speaks_of_what_is_stored() -> None:
    rule = LabelRule.identity(4).remapped([None, 0, 0, 1])
    assert rule.unedited == LabelRule.identity(4)
    assert "the ids run up to 4 for 4 classes" in rule.advice(row(0, 1, 4))
    assert "the ids run up to" not in rule.advice(row(0, 1, 9))
