"""A small evaluation with answers that can be checked by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cgrseg.evaluation.result import EvaluationResult
from cgrseg.reporting.records import ReportInput, Sample, plain

CLASSES = ("sky", "tree", "road & <car>")


def result_of(counts: np.ndarray, confusion: np.ndarray, **settings: object) -> EvaluationResult:
    """An evaluation from counts (N, 3, K) and a matrix (K, K) that fit each other."""
    stems = tuple(f"image_{k}" for k in range(len(counts)))
    return EvaluationResult(CLASSES, stems, confusion, counts, settings=settings)


@pytest.fixture
def result() -> EvaluationResult:
    """Two images; class 2 never occurs. IoU: sky 8 / 10, tree 6 / 8, overall 14 of 16 right.

    Image 0: sky 5 of 5 found. Image 1: sky 3 of 5 found, 2 taken for tree; tree 6 of 6.
    """
    confusion = np.array([[8, 2, 0], [0, 6, 0], [0, 0, 0]])
    counts = np.array([[[5, 0, 0], [5, 0, 0], [5, 0, 0]], [[3, 6, 0], [3, 8, 0], [5, 6, 0]]])
    return result_of(counts, confusion, dataset="camvid", split="test", variant="cgrseg_t")


@pytest.fixture
def sample() -> Sample:
    """A 4 x 6 image with one wrong column and one ignored row."""
    image = np.full((4, 6, 3), 120, np.uint8)
    label = np.zeros((4, 6), np.uint8)
    label[:, 3:] = 1
    label[3] = 255
    prediction = label.copy()
    prediction[3] = 0
    prediction[:, 3] = 0
    return Sample("a/<b>", image, label, prediction, "worst", {"mIoU": 0.5})


@pytest.fixture
def report_input(result: EvaluationResult, sample: Sample) -> ReportInput:
    """Everything filled in."""
    return ReportInput(
        title="Run <1> & more",
        evaluation=plain(result.as_json()),
        history=[
            {"iteration": "10", "loss": "2.5", "rate": "1e-3"},
            {"iteration": "20", "loss": "1.5", "rate": ""},
        ],
        score_history=[{"iteration": "20", "mIoU": "0.42"}],
        samples=[sample],
        notes={"mIoU of colour alone": 0.07, "minutes": 3.25},
        config={"optimizer": {"lr": 0.001, "betas": [0.9, 0.999]}, "name": "x"},
        versions={"torch": "2.13.0"},
    )


@pytest.fixture
def run_folder(tmp_path: Path, result: EvaluationResult) -> Path:
    """A run folder as an evaluation leaves it."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    result.write(folder)
    return folder
