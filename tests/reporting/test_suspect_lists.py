"""Lists of suspect regions, read back by the readers of CVAT's and Label Studio's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgrseg.data.convert.formats import formats
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import Pair
from cgrseg.evaluation.ranking import RankedLabel
from cgrseg.evaluation.suspicion import SuspectRegion
from cgrseg.reporting.suspect_lists import CVAT, LABEL_STUDIO, write_suspect_lists

BOX = (10, 20, 30, 8)  # left, top, width, height
HOSTILE = 'a "b" & <c> ü'


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images with lists of one suspect region beside them, of the first image alone."""
    folder = tmp_path / "images"
    ranking = []
    for name, regions in (
        (HOSTILE, (SuspectRegion(0, 1, 200, 0.5, BOX),)),
        ("clean", ()),
    ):
        path = folder / "sub" / f"{name}.png"
        write_image(path, np.zeros((48, 64, 3), np.uint8))
        ranking.append(RankedLabel(Pair(f"sub/{name}", path, None), (48, 64), 0.1, regions))
    write_suspect_lists(tmp_path, ranking, folder)
    return folder


def assert_suspect_at_the_box(kind: str, file: Path, images: Path) -> None:
    out = file.parent / "out"
    format_class: Any = formats()[kind]
    report = run_conversion(format_class(file, out, images=images, background="fine"))
    assert report.ok, report.text()
    (label,) = (out / "annotations").rglob("*.png")
    assert label.stem == HOSTILE
    left, top, width, height = BOX
    expected = np.zeros((48, 64), np.uint8)
    expected[top : top + height, left : left + width] = 1
    np.testing.assert_array_equal(read_label(label), expected)


def test_cvat(images: Path, tmp_path: Path) -> None:
    assert_suspect_at_the_box("cvat", tmp_path / CVAT, images)


def test_label_studio(images: Path, tmp_path: Path) -> None:
    tasks = json.loads((tmp_path / LABEL_STUDIO).read_text())
    (prediction,) = tasks[0].pop("predictions")
    assert prediction["score"] == 0.1
    assert [result["score"] for result in prediction["result"]] == [0.5]
    tasks[0]["annotations"] = [{"result": prediction["result"]}]  # accepted in Label Studio
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert_suspect_at_the_box("label-studio", tmp_path / "export.json", images)
