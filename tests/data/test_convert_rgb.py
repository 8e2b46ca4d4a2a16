"""RGB masks with a table of colours, to a folder that trains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cgrseg.data.convert import convert_rgb_masks
from cgrseg.data.convert.color_masks import read_color_table
from cgrseg.data.convert.formats.rgb import list_colors
from cgrseg.data.image_files import read_image, write_image
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError

COLOURS = "road 128 64 128\ncar 0 0 142\nvoid 0 0 0\n"


def rgb_folder(root, masks):
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for stem, mask in masks.items():
        write_image(root / "images" / f"{stem}.jpg", 255 - mask)
        write_image(root / "masks" / f"{stem}.png", mask)
    (root / "colours.txt").write_text(COLOURS)
    return root


def two_colours():
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[1:] = (128, 64, 128)
    mask[2, 2:4] = (0, 0, 142)
    return mask


def convert_rgb(root, out, **more):
    settings = {"colors": root / "colours.txt", "ignored": ["void"], **more}
    return convert_rgb_masks(root / "images", root / "masks", out, **settings)


def test_rgb_masks_by_hand(tmp_path):
    root = rgb_folder(tmp_path / "in", {"a": two_colours()})
    report = convert_rgb(root, tmp_path / "out")
    assert (report.exit_code, report.classes) == (0, ("road", "car"))
    assert read_label(tmp_path / "out" / "annotations" / "a.png").tolist() == [
        [255] * 5,
        [0] * 5,
        [0, 0, 1, 1, 0],
        [0] * 5,
    ]
    # The palette of the label PNG shows each class in its mask's colour.
    shown = read_image(tmp_path / "out" / "annotations" / "a.png")
    assert np.array_equal(shown, two_colours())


def test_rgb_unknown_colours_are_named_with_the_nearest(tmp_path):
    mask = two_colours()
    mask[3, 4] = (0, 2, 140)
    root = rgb_folder(tmp_path / "in", {"a": mask, "b": two_colours()})
    report = convert_rgb(root, tmp_path / "out")
    assert (report.written, report.exit_code) == (1, 1)
    message = report.failures[0].message
    assert "(0, 2, 140) (5.00%)" in message and "(0, 0, 142)" in message
    assert not (tmp_path / "out" / "annotations" / "a.png").exists()


def test_rgb_without_a_table_lists_the_colours_and_writes_nothing(tmp_path):
    root = rgb_folder(tmp_path / "in", {"a": two_colours()})
    with pytest.raises(DataError) as caught:
        convert_rgb(root, tmp_path / "out", colors=None)
    assert "128 64 128   65.00%" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert list_colors(root / "masks") == {
        (128, 64, 128): 13 / 20,
        (0, 0, 0): 5 / 20,
        (0, 0, 142): 2 / 20,
    }


def test_rgb_lossy_masks_are_refused(tmp_path):
    root = rgb_folder(tmp_path / "in", {"a": two_colours()})
    write_image(root / "masks" / "a.jpg", two_colours())
    (root / "masks" / "a.png").unlink()
    report = convert_rgb(root, tmp_path / "out")
    assert "lossy" in report.failures[0].message


def test_rgb_what_has_no_partner_is_named(tmp_path):
    root = rgb_folder(tmp_path / "in", {"a": two_colours(), "b": two_colours(), "c": two_colours()})
    (root / "images" / "b.jpg").unlink()
    (root / "masks" / "c.png").unlink()
    report = convert_rgb(root, tmp_path / "out")
    assert [failure.file.rsplit("/", 1)[-1] for failure in report.failures] == ["b.png", "c.jpg"]
    assert report.written == 1


def test_rgb_names_with_an_ending_pair_up(tmp_path):
    root = rgb_folder(tmp_path / "in", {"a": two_colours()})
    (root / "masks" / "a.png").rename(root / "masks" / "a_L.png")
    assert convert_rgb(root, tmp_path / "out", mask_suffix="_L").exit_code == 0
    assert (tmp_path / "out" / "annotations" / "a.png").is_file()


@pytest.mark.parametrize(
    "text",
    [
        COLOURS,
        "128 64 128\troad\n0 0 142 car\n0 0 0\tvoid",
        "name,r,g,b\nroad,128,64,128\ncar,0,0,142\nvoid,0,0,0",
    ],
)
def test_colour_tables_in_the_forms_that_people_have(tmp_path, text):
    (tmp_path / "c.txt").write_text(text)
    expected = {(128, 64, 128): "road", (0, 0, 142): "car", (0, 0, 0): "void"}
    assert read_color_table(tmp_path / "c.txt") == expected
    (tmp_path / "c.json").write_text(json.dumps({n: c for c, n in expected.items()}))
    assert read_color_table(tmp_path / "c.json") == expected


@pytest.mark.parametrize("text", ["road 1 2\n", "road 1 2 300\n", "a 1 2 3\nb 1 2 3\n", "\n"])
def test_colour_tables_that_cannot_be_meant_are_refused(tmp_path, text):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=r"c\.txt"):
        read_color_table(tmp_path / "c.txt")
