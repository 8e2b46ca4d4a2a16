"""From an image to a label map: preprocessing, modes, backends, Predictor."""

from __future__ import annotations

from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.folder import FolderReport, predict_folder
from cgrseg.inference.modes import PUBLISHED_RATIOS, Segmentation, augmented, segment
from cgrseg.inference.prediction import Prediction
from cgrseg.inference.predictor import Predictor

__all__ = [
    "PUBLISHED_RATIOS",
    "Backend",
    "FolderReport",
    "Prediction",
    "Predictor",
    "Segmentation",
    "TorchBackend",
    "augmented",
    "predict_folder",
    "segment",
]
