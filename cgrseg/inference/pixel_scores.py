"""What the network says about every pixel: class, confidence, probability of a label, entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.config.schema import TestConfig
from cgrseg.data.geometry import Image
from cgrseg.errors import ConfigError
from cgrseg.inference.backends import Backend
from cgrseg.inference.device_decode import decoded_tiles
from cgrseg.inference.segmenting import fit_to_sizes
from cgrseg.inference.views import NetworkInput, views_of


@dataclass(frozen=True)
class PixelScores:
    """Scores of the pixels of one image, at its own size (H, W).

    Attributes:
        prediction: class of the highest probability, int16.
        confidence: that probability, float32 in 0..1.
        given: probability of the class of the label map, float32 in 0..1; 0 where the label map
            holds no class; None without a label map.
        entropy: entropy of the probabilities divided by its largest value, the logarithm of the
            number of classes: float32, 0 (certain) to 1 (all classes equally likely).
    """

    prediction: NDArray[np.int16]
    confidence: NDArray[np.float32]
    given: NDArray[np.float32] | None
    entropy: NDArray[np.float32]


def pixel_scores(
    backend: Backend, image: Image, config: TestConfig, labels: NDArray[np.uint8] | None = None
) -> PixelScores:
    """Score every pixel of an image.

    Args:
        backend: runs the network.
        image: (H, W, C).
        config: scale, mode, ratios and flip.
        labels: label map (H, W) of training ids.

    Raises:
        ConfigError: the backend gives label maps only, or cannot do the mode.
        DataError: the network gave NaN or infinite values.
    """
    if backend.output == "labels":
        raise ConfigError(
            "exported model",
            found="a file that gives label maps",
            expected="a network that gives the probabilities of all classes",
            remedy="export it again: cgrseg export CHECKPOINT --output logits",
        )
    size = (image.shape[0], image.shape[1])
    config = fit_to_sizes(config, image, backend.sizes)
    prediction = np.empty(size, np.int16)
    confidence, entropy = np.empty(size, np.float32), np.empty(size, np.float32)
    given = None if labels is None else np.empty(size, np.float32)
    largest = math.log(max(2, backend.num_classes))
    with torch.inference_mode():
        views = list(views_of(backend, image, config))
        for rows, columns, values in decoded_tiles(views, size, backend.device):
            best, winners = values.max(dim=1)
            prediction[rows, columns] = winners.cpu().numpy()
            confidence[rows, columns] = best.cpu().numpy()
            spread = torch.special.entr(values).sum(dim=1).div_(largest)
            entropy[rows, columns] = spread.clamp_(0, 1).cpu().numpy()
            if given is not None and labels is not None:
                ids = torch.from_numpy(labels[rows, columns].astype(np.int64)).to(values.device)
                known = ids < backend.num_classes
                found = values.gather(1, torch.where(known, ids, 0)[:, None])[:, 0]
                given[rows, columns] = torch.where(known, found, 0.0).cpu().numpy()
    return PixelScores(prediction, confidence, given, entropy)


def image_features(backend: Backend, image: Image, config: TestConfig) -> NDArray[np.float32]:
    """Pooled features (C,) of the whole image, which are alike for images that look alike.

    Args:
        backend: runs the network; :meth:`Backend.features` says what C is.
        image: (H, W, C).
        config: scale; mode, ratios and flip are not used.
    """
    whole = config.model_copy(update={"mode": "whole", "ratios": [1.0], "flip": False})
    ready = NetworkInput.of(image, fit_to_sizes(whole, image, backend.sizes))
    with torch.inference_mode():
        return np.asarray(backend.features(ready.tensor)[0].float().cpu().numpy(), np.float32)
