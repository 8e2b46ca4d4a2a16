"""CSV files of a run: no row twice, none half."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgrseg.errors import DataError
from cgrseg.training.checkpointing import read_history
from cgrseg.training.run_log import RunTable, read_table


def test_rows_beyond_the_checkpoint_and_half_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = RunTable(path, ["loss", "rate"], keep_until=0)
    for iteration in (10, 20, 30):
        table.append(iteration, {"loss": 1.0 / iteration, "rate": 1e-4, "unknown": 1.0})
    with path.open("a") as stream:
        stream.write("40,0.0")  # killed while writing
    assert [row["iteration"] for row in read_table(path)] == ["10", "20", "30"]
    RunTable(path, ["loss", "rate", "acc_seg"], keep_until=20).append(25, {"loss": 0.5})
    assert path.read_text().splitlines() == [
        "iteration,loss,rate,acc_seg",
        "10,0.1,0.0001,",
        "20,0.05,0.0001,",
        "25,0.5,,",
    ]


def test_no_file_is_an_empty_table(tmp_path: Path) -> None:
    assert read_table(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    "content",
    [
        b"iteration,mIoU\n100,\xff\n",
        b"iteration,mIoU\n100,half\n",
        b'iteration,"\n' + b"x" * 200_000,
    ],
)
def test_a_damaged_table_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.csv: it cannot be read as a run's table"):
        read_history(tmp_path)


def test_iterations_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    rows = ["100,0.5", "\u00b2,0.5", "9" * 5000 + ",0.5"]
    (tmp_path / "scores.csv").write_text("\n".join(["iteration,mIoU", *rows]), encoding="utf-8")
    assert read_history(tmp_path) == [(100, 0.5)]
