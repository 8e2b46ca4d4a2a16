"""From an image to a label map: preprocessing, modes, backends, Predictor."""

from __future__ import annotations

from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.prediction import Prediction, Speed, Timing
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.raster import RasterReport, predict_raster
from cgrseg.inference.results import FolderReport, VideoReport, predict_folder, predict_video
from cgrseg.inference.segmenting import PUBLISHED_RATIOS, augmented, segment

__all__ = [
    "PUBLISHED_RATIOS",
    "Backend",
    "FolderReport",
    "Prediction",
    "Predictor",
    "RasterReport",
    "Segmentation",
    "Speed",
    "Timing",
    "TorchBackend",
    "VideoReport",
    "augmented",
    "predict_folder",
    "predict_raster",
    "predict_video",
    "segment",
]
