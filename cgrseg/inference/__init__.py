"""From an image to a label map: preprocessing, modes, backends, Predictor."""

from __future__ import annotations

from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.folder import FolderReport, predict_folder
from cgrseg.inference.prediction import Prediction, Speed, Timing
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.segmenting import PUBLISHED_RATIOS, augmented, segment
from cgrseg.inference.video import VideoReport, predict_video

__all__ = [
    "PUBLISHED_RATIOS",
    "Backend",
    "FolderReport",
    "Prediction",
    "Predictor",
    "Segmentation",
    "Speed",
    "Timing",
    "TorchBackend",
    "VideoReport",
    "augmented",
    "predict_folder",
    "predict_video",
    "segment",
]
