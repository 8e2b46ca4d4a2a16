"""What a report takes as input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgrseg.errors import DataError
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.reporting.records import (
    check_evaluation,
    evaluation_file,
    plain,
    read_evaluation,
)
from cgrseg.reporting.run_report import choose_images


def test_plain_values() -> None:
    given = {
        1: np.float32(0.5),
        "nan": float("nan"),
        "inf": np.float64(math.inf),
        "array": np.array([[1, 2]], np.int64),
        "nested": ({"path": Path("a") / "b"}, True, None),
    }
    found = plain(given)
    assert found == {
        "1": 0.5,
        "nan": None,
        "inf": None,
        "array": [[1, 2]],
        "nested": [{"path": str(Path("a/b"))}, True, None],
    }
    assert found["nested"][1] is True
    json.dumps(found, allow_nan=False)


def test_an_evaluation_is_read_from_its_folder_or_file(run_folder: Path) -> None:
    from_folder = read_evaluation(run_folder)
    assert from_folder == read_evaluation(run_folder / "evaluation.json")
    assert from_folder["scores"]["mIoU"] == pytest.approx((8 / 10 + 6 / 8) / 2)
    assert from_folder["per_class"][2]["IoU"] is None


def test_missing_evaluation_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cgrseg evaluate"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("confusion"), "lacks confusion"),
        (lambda v: v.update(per_class=[]), "per_class"),
        (lambda v: v["per_class"][0].pop("IoU"), "per_class"),
        (lambda v: v["confusion"].pop(), "3 x 3"),
        (lambda v: v["confusion"][1].append(0), "3 x 3"),
    ],
)
def test_incomplete_evaluations_are_refused(
    result: EvaluationResult, change: Any, said: str
) -> None:
    value = plain(result.as_json())
    change(value)
    with pytest.raises(DataError, match=said):
        check_evaluation(value, "evaluation.json")


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_files_that_are_no_evaluation_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"evaluation\.json"):
        read_evaluation(tmp_path)


def _records(scores: list[float | None]) -> Any:
    return [{"image": str(k), "mIoU": score} for k, score in enumerate(scores)]


def test_worst_middle_and_best_images_by_hand() -> None:
    scores = [0.5, 0.1, None, 0.9, 0.3, 0.7, 0.2, 0.8]
    chosen = choose_images(_records(scores), worst=2, typical=1, best=2)
    assert chosen == [(1, "worst"), (6, "worst"), (0, "typical"), (3, "best"), (7, "best")]


@pytest.mark.parametrize("count", range(14))
def test_no_image_is_chosen_twice(count: int) -> None:
    chosen = choose_images(_records([0.1 * k for k in range(count)]), 4, 2, 4)
    positions = [k for k, _ in chosen]
    assert len(set(positions)) == len(positions) == min(count, 10)


def test_which_evaluation_a_folder_stands_for(run_folder: Path) -> None:
    plain_one = run_folder / "evaluation.json"
    (run_folder / "evaluation_earlier1.json").write_text("{}")
    (run_folder / "evaluation_test.json").write_bytes(plain_one.read_bytes())
    assert evaluation_file(run_folder) == plain_one
    plain_one.unlink()
    assert evaluation_file(run_folder) == run_folder / "evaluation_test.json"
    (run_folder / "evaluation_val.json").write_text("{}")
    with pytest.raises(DataError, match=r"evaluation_test\.json, evaluation_val\.json"):
        evaluation_file(run_folder)
    with pytest.raises(DataError, match="there is no such file"):
        evaluation_file(run_folder / "nothing")
    (run_folder / "empty").mkdir()
    with pytest.raises(DataError, match="no evaluation in this folder"):
        evaluation_file(run_folder / "empty")
