"""Comparing runs: differences, significance, alignment, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cgrseg.errors import DataError
from cgrseg.reporting.comparison import compare_runs, false_discoveries, run_names
from cgrseg.reporting.comparison_page import write_comparison

from .conftest import result_of


def _run(
    root: Path, name: str, hits: np.ndarray, *, stems: list[str] | None = None, **settings: object
) -> Path:
    """A run on images with 100 pixels of each of two classes; `hits` (N, 2) of them found."""
    count = len(hits)
    counts = np.zeros((count, 3, 3), np.int64)
    counts[:, 0, :2] = hits
    counts[:, 2, :2] = 100
    missed = 100 - hits
    counts[:, 1, 0] = hits[:, 0] + missed[:, 1]
    counts[:, 1, 1] = hits[:, 1] + missed[:, 0]
    total, lost = hits.sum(axis=0), missed.sum(axis=0)
    confusion = np.array([[total[0], lost[0], 0], [lost[1], total[1], 0], [0, 0, 0]])
    result = result_of(counts, confusion, **settings)
    if stems is not None:
        object.__setattr__(result, "stems", tuple(stems))
    folder = root / name
    folder.mkdir(parents=True)
    result.write(folder)
    return folder


@pytest.fixture
def hits() -> np.ndarray:
    """Pixels found in forty images, of two classes."""
    return np.random.default_rng(0).integers(40, 60, (40, 2))


def test_a_clear_gain_of_one_class_is_found(tmp_path: Path, hits: np.ndarray) -> None:
    better = hits.copy()
    better[:, 0] += 35
    paths = [_run(tmp_path, "a", hits), _run(tmp_path, "b", better)]
    (change,) = compare_runs(paths).differences
    first, second = (_iou(each) for each in (hits, better))
    np.testing.assert_allclose(change.per_class[:2], second - first)
    assert np.isnan(change.per_class[2])
    assert change.miou == pytest.approx((second - first).mean())
    assert change.interval is not None and change.p_value is not None
    assert 0 < change.interval.low < change.miou < change.interval.high
    assert change.p_value < 0.01
    assert change.significant.tolist() == [True, True, False]
    assert change.shared_images == 40


def _iou(hits: np.ndarray) -> np.ndarray:
    """IoU of both classes: found over (labelled + predicted - found)."""
    found, labelled = hits.sum(axis=0), 100 * len(hits)
    predicted = found + (labelled - found)[::-1]
    return np.asarray(found / (labelled + predicted - found))


def test_noise_is_not_called_a_difference(tmp_path: Path, hits: np.ndarray) -> None:
    noise = np.random.default_rng(1).integers(-6, 7, hits.shape)
    paths = [
        _run(tmp_path, "a", hits),
        _run(tmp_path, "b", hits + noise - noise.mean(0).round().astype(int)),
    ]
    (change,) = compare_runs(paths).differences
    assert change.p_value is not None and change.p_value > 0.05
    assert not change.significant.any()


def test_a_run_against_itself(tmp_path: Path, hits: np.ndarray) -> None:
    paths = [_run(tmp_path, "a", hits), _run(tmp_path, "b", hits)]
    (change,) = compare_runs(paths).differences
    assert change.miou == 0 and change.p_value == 1.0 and not change.significant.any()


def test_images_are_matched_by_name_not_by_order(tmp_path: Path, hits: np.ndarray) -> None:
    better = hits.copy()
    better[::2] += 20
    order = np.random.default_rng(2).permutation(len(hits))
    stems = [f"image_{k}" for k in order]
    plain = compare_runs([_run(tmp_path, "a", hits), _run(tmp_path, "b", better)])
    mixed = compare_runs([tmp_path / "a", _run(tmp_path, "c", better[order], stems=stems)])
    assert plain.differences[0].interval == mixed.differences[0].interval


def test_other_images_labels_or_classes_are_refused(tmp_path: Path, hits: np.ndarray) -> None:
    first = _run(tmp_path, "a", hits)
    with pytest.raises(DataError, match="other images"):
        compare_runs([first, _run(tmp_path, "fewer", hits[:-1])])
    other = _run(tmp_path, "labels", hits)
    path = other / "evaluation.npz"
    content = dict(np.load(path))
    content["counts"][0, 2, 0] += 1
    np.savez(path, **content)
    with pytest.raises(DataError, match="other labels"):
        compare_runs([first, other])
    renamed = _run(tmp_path, "classes", hits)
    text = (renamed / "evaluation.json").read_text(encoding="utf-8")
    (renamed / "evaluation.json").write_text(text.replace('"tree"', '"bush"'), encoding="utf-8")
    with pytest.raises(DataError, match=r"classes other than"):
        compare_runs([first, renamed])
    (renamed / "evaluation.npz").unlink()
    with pytest.raises(DataError, match="other classes"):
        compare_runs([first, renamed])


def test_without_counts_differences_are_given_and_significance_is_not(
    tmp_path: Path, hits: np.ndarray
) -> None:
    paths = [_run(tmp_path, "a", hits), _run(tmp_path, "b", hits + 20)]
    (paths[1] / "evaluation.npz").unlink()
    comparison = compare_runs(paths)
    (change,) = comparison.differences
    assert change.p_value is None and change.miou > 0.1
    assert not change.significant.any()
    (warning,) = comparison.warnings
    assert "b lacks the .npz" in warning
    page = write_comparison(tmp_path / "c.html", comparison).html.read_text(encoding="utf-8")
    assert "significance was not judged" in page


@pytest.mark.parametrize("paths", [[], ["a"]])
def test_one_run_is_no_comparison(tmp_path: Path, hits: np.ndarray, paths: list[str]) -> None:
    _run(tmp_path, "a", hits)
    with pytest.raises(DataError, match="two runs or more"):
        compare_runs([tmp_path / path for path in paths])


def test_benjamini_hochberg_by_hand() -> None:
    """Limits for five values at 5 %: 0.01, 0.02, 0.03, 0.04, 0.05; the third still passes."""
    p_values = np.array([0.9, 0.005, 0.029, np.nan, 0.025, 0.2])
    assert false_discoveries(p_values).tolist() == [False, True, True, False, True, False]
    assert not false_discoveries(np.array([0.02, 0.9, 0.9])).any()
    assert not false_discoveries(np.array([np.nan])).any()


def test_run_names_are_short_and_differ(tmp_path: Path) -> None:
    def name(*parts: str) -> Path:
        return tmp_path.joinpath(*parts)

    assert run_names([name("x", "a", "evaluation.json"), name("x", "b", "evaluation.json")]) == [
        "a",
        "b",
    ]
    deep = [name("one", "run", "evaluation.json"), name("two", "run", "evaluation.json")]
    assert run_names(deep) == ["one/run", "two/run"]
    kinds = [name("run", "evaluation.json"), name("run", "evaluation_test.json")]
    assert run_names(kinds) == ["run", "evaluation_test"]
    same = name("run", "evaluation.json")
    found = run_names([same, same])
    assert len(set(found)) == 2 and found[1].endswith("(2)")


@pytest.mark.parametrize("name", ["compare.html", "compare.json", "compare_classes.csv"])
def test_no_file_of_another_is_replaced(tmp_path: Path, hits: np.ndarray, name: str) -> None:
    comparison = compare_runs([_run(tmp_path, "a", hits), _run(tmp_path, "b", hits + 30)])
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name}: it exists already"):
        write_comparison(tmp_path / "compare.html", comparison)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.glob("compare*"))) == 1
    write_comparison(tmp_path / "compare.html", comparison, overwrite=True)
    assert len(list(tmp_path.glob("compare*"))) == 3
    for kept in ("evaluation", "evaluation_test", "config", "metrics", "scores"):
        with pytest.raises(DataError, match="a run's own files"):
            write_comparison(tmp_path / f"{kept}.html", comparison, overwrite=True)


def test_comparison_is_written_with_json_and_csv(tmp_path: Path, hits: np.ndarray) -> None:
    paths = [
        _run(tmp_path, "a", hits, dataset="x", precision="fp32"),
        _run(tmp_path, "b<i>", hits + 30, dataset="x", precision="bf16"),
        _run(tmp_path, "c", hits - 20, dataset="x", precision="fp32"),
    ]
    files = write_comparison(tmp_path / "out" / "compare.html", compare_runs(paths), title="T & U")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.html",
        "compare.json",
        "compare_classes.csv",
    ]
    numbers = json.loads(files.json.read_text(encoding="utf-8"))
    assert numbers["reference"] == "a"
    gain, loss = numbers["differences"]
    assert gain["name"] == "b<i>" and gain["mIoU"] > 0 > loss["mIoU"]
    assert gain["per_class"][2] == {
        "class": "road & <car>",
        "difference": None,
        "p_value": None,
        "significant": False,
    }
    rows = list(csv.DictReader(files.tables[0].read_text(encoding="utf-8").splitlines()))
    assert float(rows[0]["difference c"]) == pytest.approx(loss["per_class"][0]["difference"])
    assert rows[0]["significant b<i>"] == "1" and rows[2]["IoU a"] == ""
    page = files.html.read_text(encoding="utf-8")
    assert "T &amp; U" in page and "b<i>" not in page and "b&lt;i&gt;" in page
    assert "bf16" in page and "precision" in page  # the setting that differs
    assert '">dataset</td>' not in page  # and not the one that does not
    assert page.count("★") >= 2
