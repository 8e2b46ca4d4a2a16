"""Class names keep their ids through every file form."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.class_names import (
    check_class_names,
    class_list_text,
    clean_name,
    differences,
    numbered_names,
    parse_class_list,
    read_class_list,
    usable_names,
    usable_palette,
)
from cgrseg.config import Config, load_config
from cgrseg.config.schema import DataConfig
from cgrseg.data.convert import convert_coco_instances, convert_labelme
from cgrseg.data.convert.color_masks import read_color_table
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.data.resolve import resolve_spec
from cgrseg.errors import ConfigError, DataError
from cgrseg.formats.description import Description
from cgrseg.models import read_checkpoint
from cgrseg.training.checkpointing import write_checkpoint
from tests.inference.fixtures import description


def valid(name: str) -> bool:
    try:
        check_class_names([name], "here")
    except DataError:
        return False
    return True


ANY = st.text(max_size=12)
NAMES = st.lists(
    st.one_of(
        st.text(alphabet="#\\ \ufeffa,1é'\"", min_size=1, max_size=6), st.text(max_size=8)
    ).filter(valid),
    min_size=1,
    max_size=8,
).map(lambda names: list(dict.fromkeys(clean_name(name) for name in names)))


@settings(deadline=None)
@given(ANY)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean_name(clean_name(text)) == clean_name(text)


@settings(deadline=None)
@given(NAMES)
def test_a_class_list_comes_back_from_its_text_file(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("names") / "classes.txt"
    path.write_text(class_list_text(names), encoding="utf-8", newline="")
    assert list(read_class_list(path)) == names
    path.write_text("# ids\n\n" + class_list_text(names) + "# end\n\n", encoding="utf-8-sig")
    assert list(read_class_list(path)) == names


@settings(deadline=None)
@given(NAMES)
def test_names_come_back_from_a_color_table(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("colors") / "colors.json"
    path.write_text(json.dumps({name: [k, 0, 0] for k, name in enumerate(names)}))
    assert list(read_color_table(path).values()) == names


@settings(deadline=None)
@given(NAMES)
def test_names_come_back_from_what_a_checkpoint_holds(names: list[str]) -> None:
    assert usable_names(json.loads(json.dumps(names)), len(names), "x.pth") == tuple(names)


@settings(deadline=None)
@given(st.lists(ANY, max_size=5))
def test_a_list_is_taken_whole_or_refused(names: list[str]) -> None:
    try:
        taken = check_class_names(names, "here")
    except DataError:
        return
    assert len(taken) == len(names) == len(set(taken))
    assert taken == parse_class_list(class_list_text(taken).splitlines(), "here")


def test_text_forms_of_a_color_table(tmp_path: Path) -> None:
    path = tmp_path / "colors.txt"
    path.write_text(
        "# agreed on 3 May 1 2 3\nname,r,g,b\nroad, paved 128 64 128\n0 0 0  wet  road\n"
        "\\#1,1,1,1\n2 2 2 #2\nroad, paved 9 9 9\n"
    )
    assert read_color_table(path) == {
        (128, 64, 128): "road, paved",
        (0, 0, 0): "wet  road",
        (1, 1, 1): "#1",
        (2, 2, 2): "#2",
        (9, 9, 9): "road, paved",
    }


def test_a_name_with_two_colors_in_json(tmp_path: Path) -> None:
    path = tmp_path / "colors.json"
    path.write_text('{"road": [1, 1, 1], "sky": [2, 2, 2], "road": [3, 3, 3]}')
    assert read_color_table(path) == {(1, 1, 1): "road", (2, 2, 2): "sky", (3, 3, 3): "road"}


def test_comments_and_empty_lines_around_move_nothing() -> None:
    lines = ["", "# id order, agreed on 3 May", "plaster", "  # rust comes next", "rust", "", ""]
    assert parse_class_list(lines, "classes.txt") == ("plaster", "rust")


def test_a_name_may_begin_with_the_sign_of_a_comment() -> None:
    assert class_list_text(["#1", "\\x"]) == "\\#1\n\\\\x\n"
    assert parse_class_list(["\\#1", "\\\\x", "\\y"], "classes.txt") == ("#1", "\\x", "\\y")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["a", "", "b"], ["classes.txt, line 2", "'a'", "'b'"]),
        (["a", "# c", "", "", "b"], ["classes.txt, line 3", "'a'"]),
        (["a", "b", "# c", "a "], ["'a'", "line 1", "line 4"]),
        (["cafe\u0301", "caf\u00e9"], ["line 1", "line 2"]),
        (["0\troad"], ["line 1", "control character", "0\\troad"]),
        (["# only this"], ["0 class names", "1 to 255"]),
        ([f"n{k}" for k in range(256)], ["256 class names", "1 to 255"]),
    ],
)
def test_a_list_that_would_move_ids_is_refused(lines: list[str], told: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        parse_class_list(lines, "classes.txt")
    assert all(part in str(caught.value) for part in told), str(caught.value)


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_line_of_a_class_list_is_never_split_further(tmp_path: Path, inside: str) -> None:
    (tmp_path / "classes.txt").write_text(f"sky{inside}blue\nroad\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1 holds a (control character|line break)"):
        read_class_list(tmp_path / "classes.txt")


@pytest.mark.parametrize("bad", ["a\nb", "a\x85b", "a\u2028b", "a\x0bb", "a\x00b", "\ud800", " "])
def test_a_name_that_no_text_file_holds_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="id 1"):
        check_class_names(["fine", bad], "data.classes", error=ConfigError)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (["a"], "1 class name for 2 classes"),
        (["a", "b", "c"], "3 class names for 2 classes"),
        ("ab", "no list (str)"),
        (7, "no list (int)"),
        ({"a": 0, "b": 1}, "no list (dict)"),
        (["a", 1], "not all texts"),
        (["a", "a"], "'a' stands at id 0 and again at id 1"),
        (["a", "b\nc"], "line break"),
    ],
)
def test_names_of_a_file_that_do_not_fit_are_said(
    held: object, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert usable_names(held, 2, "x.pth") == numbered_names(2) == ("class 0", "class 1")
    assert "x.pth: " in caplog.text
    assert told in caplog.text
    assert "numbered" in caplog.text


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ([[0, 0, 0]], "1 colors for 2 classes"),
        ([[0, 0, 0], [0, 0, 300]], "outside 0 to 255"),
        ([[0, 0], [0, 0]], "no list of RGB triples"),
        (5, "no list of RGB triples"),
    ],
)
def test_a_palette_that_does_not_fit_is_said(
    held: object, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert usable_palette(held, 2, "x.pth") is None
    assert told in caplog.text


def test_differences_name_the_ids() -> None:
    assert differences(["a", "b"], ["a", "b"]) is None
    assert differences(["a", "b", "c"], ["a", "c"]) == (
        "id 1: 'b' became 'c'; id 2: 'c' became no class"
    )


@settings(max_examples=25)
@given(names=NAMES)
def test_names_keep_their_ids_from_coco_and_labelme_to_a_dataset(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    root = tmp_path_factory.mktemp("forms")
    write_image(root / "in" / "a.png", np.zeros((8, 8, 3), np.uint8))
    area = [[1, 1], [6, 1], [6, 6], [1, 6]]
    last = len(names) - 1
    flat = [value for point in area for value in point]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": k + 5, "name": name} for k, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": last + 5, "segmentation": [flat]}],
    }
    (root / "coco.json").write_text(json.dumps(coco))
    convert_coco_instances(root / "coco.json", root / "in", root / "coco", workers=0)
    shape = {"label": names[last], "points": area, "shape_type": "polygon"}
    labelme = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 8, "imageWidth": 8}
    (root / "in" / "a.json").write_text(json.dumps(labelme))
    convert_labelme(root / "in", root / "labelme", classes=names, workers=0)
    for made in (root / "coco", root / "labelme"):
        assert resolve_spec(DataConfig(dataset="custom", root=str(made))).classes == tuple(names)
        assert read_label(made / "annotations" / "a.png")[3, 3] == last


@settings(deadline=None, max_examples=25)
@given(names=NAMES)
def test_names_keep_their_ids_in_settings_checkpoints_and_exports(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    root = tmp_path_factory.mktemp("forms")
    config = Config(data=DataConfig(dataset="custom", root=str(root), classes=names))
    (root / "run.json").write_text(json.dumps(config.model_dump(mode="json")))
    stored = load_config(root / "run.json")
    assert resolve_spec(stored.data).classes == tuple(names)
    meta = {"classes": list(names), "config": stored.model_dump(mode="json")}
    write_checkpoint(root / "x.pth", {"state_dict": {"a": torch.zeros(1)}, "meta": meta})
    held = read_checkpoint(root / "x.pth").meta["classes"]
    assert usable_names(held, len(names), "x.pth") == tuple(names)
    text = description(classes=names, num_classes=len(names)).model_dump_json()
    exported = Description.read(text, root / "x.onnx")
    assert usable_names(exported.classes, len(names), "x.onnx") == tuple(names)
