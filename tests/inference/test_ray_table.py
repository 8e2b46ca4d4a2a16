"""The table of a collection's predictions, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cgrseg.errors import DataError
from cgrseg.inference.image_sources import FoundImage
from cgrseg.inference.ray_engine import TABLE, _Table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def row(image: str, note: str = "n", **more: object) -> str:
    return json.dumps(
        {"image": image, "name": "x", "sha256": "0", "note": note, "shares": {"a": 1.0}} | more
    )


def write(folder: Path, *rows: str) -> None:
    table = _Table(folder)
    with table.writing([]) as add:
        for each in rows:
            add(each)
    table.finish(["a", "b"])


def test_rows_come_back_and_count_for_the_same_label_file_only(tmp_path: Path) -> None:
    image = FoundImage(tmp_path / "1.png", "1")
    write(tmp_path, row(str(image.path)), row("2.png", error="gone"))
    table = _Table(tmp_path)
    assert table.has(image, "n") and not table.has(image, "of another network")
    assert not table.has(FoundImage(Path("2.png"), "2"), "other")
    found = pq.read_table(tmp_path / TABLE).to_pylist()
    assert [one["shares"] for one in found] == [None, {"a": 1.0, "b": 0.0}] or found[0]["shares"]


@pytest.mark.parametrize("kind", ["columns", "text"])
def test_a_foreign_table_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / TABLE
    if kind == "text":
        path.write_text("prices")
    else:
        pq.write_table(pa.table({"image": ["a"], "price": [1]}), path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="no table of predictions"):
        _Table(tmp_path)
    assert path.read_bytes() == before


def test_names_that_are_no_text_do_not_stop_the_table(tmp_path: Path) -> None:
    write(tmp_path, row("\udcff.png"))
    assert pq.read_table(tmp_path / TABLE).to_pylist()[0]["image"] == "\\udcff.png"
