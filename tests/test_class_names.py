"""Class names keep their ids through every file form."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrseg.class_names import (
    check_class_names,
    class_list_text,
    clean_name,
    differences,
    numbered_names,
    parse_class_list,
    usable_names,
    usable_palette,
)
from cgrseg.data.convert.rgb_masks import read_colour_table
from cgrseg.data.custom import read_class_list
from cgrseg.errors import ConfigError, DataError


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
    assert list(read_colour_table(path).values()) == names


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
    assert read_colour_table(path) == {
        (128, 64, 128): "road, paved",
        (0, 0, 0): "wet  road",
        (1, 1, 1): "#1",
        (2, 2, 2): "#2",
        (9, 9, 9): "road, paved",
    }


def test_a_name_with_two_colors_in_json(tmp_path: Path) -> None:
    path = tmp_path / "colors.json"
    path.write_text('{"road": [1, 1, 1], "sky": [2, 2, 2], "road": [3, 3, 3]}')
    assert read_colour_table(path) == {(1, 1, 1): "road", (2, 2, 2): "sky", (3, 3, 3): "road"}


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
