"""How good a network is: metrics, and evaluating checkpoints on whole sets."""

from __future__ import annotations

import cgrseg.matplotlib_import  # noqa: F401  before torchmetrics, which imports matplotlib
from cgrseg.evaluation.evaluate import evaluate, evaluate_model
from cgrseg.evaluation.metrics import ConfusionMatrix, SegmentationScores
from cgrseg.evaluation.result import EvaluationResult

__all__ = [
    "ConfusionMatrix",
    "EvaluationResult",
    "SegmentationScores",
    "evaluate",
    "evaluate_model",
]
