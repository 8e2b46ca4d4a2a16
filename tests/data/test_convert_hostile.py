"""Annotation files that state impossible things: named and skipped, and nothing outside is used."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cgrseg.data.convert import convert_coco_instances, convert_labelme
from cgrseg.data.convert.image_names import named_inside
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError
from tests.data.test_convert_custom import HEIGHT, SQUARE, WIDTH, labelme_file, photo, shape

POLYGON = [[1, 1, 6, 1, 6, 4, 1, 4]]
HOSTILE: dict[str, Any] = {
    "run lengths that wrap around 2**64": {
        "size": [HEIGHT, WIDTH],
        "counts": [2**62] * 4 + [HEIGHT * WIDTH],
    },
    "run lengths beyond 64 bits": {"size": [HEIGHT, WIDTH], "counts": [2**70, 1]},
    "a run length without end": {"size": [HEIGHT, WIDTH], "counts": "o" * 100_000 + "0"},
    "runs of text": {"size": [HEIGHT, WIDTH], "counts": ["a", 1]},
    "no counts": {"size": [HEIGHT, WIDTH]},
    "a size without end": {"size": [2**40, 2**40], "counts": [2**80]},
    "an infinite coordinate": [[1, 1, 6, 1, 6, float("inf")]],
    "a coordinate that is no number": [[1, 1, 6, 1, 6, float("nan")]],
    "a coordinate beyond all numbers": [[1, 1, 6, 1, 6, 10**400]],
    "coordinates whose difference overflows": [[-1e308, 1e308, 1e308, -1e308, 3, 3]],
    "an odd number of coordinates": [[1, 1, 6, 1, 6, 4, 1]],
    "text": "abc",
    "a number": 5,
    "nested lists": [[[[1]]]],
}


def coco(folder, segmentation, **record):
    photo(folder / "images" / "a.png")
    photo(folder / "images" / "b.png")
    size = {"height": HEIGHT, "width": WIDTH}
    first = {"id": 1, "file_name": "a.png", **size, **record}
    content = {
        "images": [first, {"id": 2, "file_name": "b.png", **size}],
        "categories": [{"id": 1, "name": "road"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 1, "segmentation": segmentation},
            {"id": 12, "image_id": 2, "category_id": 1, "segmentation": POLYGON},
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json", folder / "images", folder / "out"


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_annotation_is_named_and_the_other_image_converted(kind, tmp_path):
    report = convert_coco_instances(*coco(tmp_path, HOSTILE[kind]))
    assert report.exit_code == 1 and report.written == 1
    assert "image a.png, annotation 11" in report.failures[0].message
    labels = read_label(tmp_path / "out" / "annotations" / "b.png")
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[1:4, 1:6] = 0
    assert np.array_equal(labels, expected)
    assert not (tmp_path / "out" / "annotations" / "a.png").exists()


@pytest.mark.parametrize(
    ("height", "width"), [(2**40, 2**40), (0, 0), (-HEIGHT, -WIDTH), (WIDTH, HEIGHT)]
)
def test_a_size_that_is_not_the_images_is_refused_before_anything_is_drawn(height, width, tmp_path):
    size = {"size": [height, width], "counts": [height * width]}
    report = convert_coco_instances(*coco(tmp_path, size, height=height, width=width))
    assert report.written == 1 and len(report.failures) == 1
    assert f"{width}x{height} pixels for a.png" in report.failures[0].message


@pytest.mark.parametrize("side", ["1e999", "NaN", '"six"', "null", "[]"])
def test_a_size_that_is_no_number(side, tmp_path):
    source, *rest = coco(tmp_path, POLYGON)
    source.write_text(source.read_text().replace(f'"height": {HEIGHT}', f'"height": {side}'))
    with pytest.raises(DataError, match=r"coco\.json: it cannot be read"):
        convert_coco_instances(source, *rest)


@pytest.mark.parametrize("depth", [100_000])
def test_nesting_without_end(depth, tmp_path):
    source, *rest = coco(tmp_path, POLYGON)
    source.write_text("[" * depth)
    with pytest.raises(DataError, match="cannot be read"):
        convert_coco_instances(source, *rest)


OUTSIDE = ["../secret.png", "sub/../../secret.png", "/etc/hostname", "C:\\secret.png", "..\\x.png"]


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "a\0b.png", "\ud800.png", "x" * 300 + ".png"])
def test_names_that_are_no_file_of_the_folder(name, tmp_path):
    photo(tmp_path / "secret.png")
    report = convert_coco_instances(*coco(tmp_path, POLYGON, file_name=name))
    assert report.exit_code == 1 and report.written == 1
    assert "file_name below the folder of images" in report.failures[0].message
    placed = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert placed == ["b.png", "b.png"]


def test_names_that_stay_inside(tmp_path):
    assert named_inside(tmp_path, "train\\a.png") == tmp_path / "train" / "a.png"
    assert named_inside(tmp_path, "train/../b.png") == tmp_path / "train/../b.png"


def test_labelme_takes_images_below_the_folder_above_and_no_others(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "images").mkdir()
    photo(project / "images" / "a.png")
    photo(tmp_path / "b.png")
    for stem, place in (("a", "../images/a.png"), ("b", "../../b.png"), ("c", str(tmp_path))):
        labelme_file(project / "labels", stem, [shape("road", SQUARE)], image=place)
        (project / "labels" / f"{stem}.png").unlink()
    report = convert_labelme(project / "labels", project / "out")
    assert report.written == 1 and len(report.failures) == 2
    assert (project / "out" / "annotations" / "a.png").is_file()


def test_an_embedded_mask_larger_than_the_image_is_not_decoded(tmp_path):
    import base64
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IEND\xaeB`\x82"
    mask = shape("road", [(0, 0), (1, 1)], "mask", mask=base64.b64encode(bomb).decode())
    labelme_file(tmp_path / "in", "a", [mask])
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert report.written == 0
    assert "60000x60000 pixels reaches outside" in report.failures[0].message


@pytest.mark.parametrize("shapes", [[5], [None], [{"label": "x"}], [{"points": 3, "label": "x"}]])
def test_shapes_of_another_form(shapes, tmp_path):
    labelme_file(tmp_path / "in", "a", [shape("road", SQUARE), *shapes])
    report = convert_labelme(tmp_path / "in", tmp_path / "out")
    assert report.written == 0
    assert "shape 2" in report.failures[0].message
