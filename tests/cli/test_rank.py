"""`cgrseg data rank` from a checkpoint to files that people and labeling tools read."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture(scope="session")
def ranked(run: Run, trained: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranked") / "out"
    result = run("data", "rank", trained / "latest.pth", scenes, "--out", folder, "--show", "3")
    assert result.exit_code == 0, result.output
    assert "3 are shown" not in result.output and str(folder / "index.html") in result.output
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_page_and_tables_agree(ranked: Path) -> None:
    table = rows(ranked / "ranking.csv")
    assert len(table) == 4
    suspicion = [float(row["suspicion"]) for row in table]
    assert suspicion == sorted(suspicion, reverse=True)
    assert (ranked / "images.txt").read_text().split("\n")[:4] == [row["image"] for row in table]
    page = (ranked / "index.html").read_text()
    titles = re.findall(r"<h4>\d+\. (\S+)", page)
    assert titles == [row["stem"] for row in table[:3]]
    assert page.count("<img ") == 3 * 3 + 1  # and the enlarged one
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_an_earlier_ranking_is_kept(run: Run, trained: Path, scenes: Path, ranked: Path) -> None:
    before = (ranked / "index.html").read_bytes()
    result = run("data", "rank", trained / "latest.pth", scenes, "--out", ranked)
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert (ranked / "index.html").read_bytes() == before


def test_unlabeled_images(run: Run, trained: Path, scenes: Path, tmp_path: Path) -> None:
    options = ["--unlabeled", scenes / "images" / "validation", "--out", tmp_path / "next"]
    result = run("data", "rank", trained / "latest.pth", scenes, *options)
    assert result.exit_code == 0, result.output
    table = rows(tmp_path / "next" / "ranking.csv")
    assert len(table) == 2 and max(float(row["distance"]) for row in table) == 1
    assert all(0 < float(row["uncertainty"]) <= 1 for row in table)
    assert not (tmp_path / "next" / "regions.csv").exists()


def test_neither_labels_nor_images(run: Run, trained: Path, tmp_path: Path) -> None:
    result = run("data", "rank", trained / "latest.pth", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "--unlabeled" in result.stderr
    assert not (tmp_path / "out").exists()


def test_results_stay_out_of_the_dataset(run: Run, trained: Path, scenes: Path) -> None:
    target = scenes / "images" / "training" / "ranking"
    result = run("data", "rank", trained / "latest.pth", scenes, "--out", target)
    assert result.exit_code == 2 and "a folder of its own for results" in result.stderr
    assert not (target / "index.html").exists()
