"""From an image to its label map, in every mode of the published test path.

- whole: the image at once; logits are resized to the network's input, the padding is cut
  off, and the rest is resized to the image's own size (two steps, as published);
- slide: windows, whose *logits* are averaged;
- several ratios and a mirrored image: their softmax *probabilities* are averaged.

Full-size logits never exist.  In mode slide memory grows with the image's width, not its
height; in mode whole the network's features and each view's logits grow with the input's
area, attention does not grow with its square (docs/evaluation.md has figures).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cgrseg.config.schema import TestConfig
from cgrseg.inference.backends import Backend
from cgrseg.inference.decode import Segmentation, decode
from cgrseg.inference.views import Image, NetworkInput, WholeView, network_size, views_of

__all__ = ["PUBLISHED_RATIOS", "Segmentation", "augmented", "segment", "segment_batch"]

#: Ratios of `--aug-test`, as published for multi-scale results (with flip).
PUBLISHED_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def augmented(config: TestConfig) -> TestConfig:
    """The same settings with the published ratios and flip."""
    return config.model_copy(update={"ratios": list(PUBLISHED_RATIOS), "flip": True})


def segment(
    backend: Backend, image: Image, config: TestConfig, *, confidence: bool = False
) -> Segmentation:
    """Label every pixel of an image.

    Args:
        backend: runs the network.
        image: uint8 RGB (H, W, 3).
        config: scale, mode, ratios and flip.
        confidence: also give the probability of the class that won.

    Raises:
        DataError: the network gave NaN or infinite values.
    """
    with torch.inference_mode():
        views = list(views_of(backend, image, config))
        return decode(views, (image.shape[0], image.shape[1]), confidence)


def segment_batch(
    backend: Backend,
    images: Sequence[Image],
    config: TestConfig,
    *,
    confidence: bool = False,
    batch_size: int | None = None,
    inputs: Sequence[NetworkInput | None] | None = None,
) -> list[Segmentation]:
    """Label several images; those with equal network inputs go through it together.

    Every other mode than one plain view of the whole image is done image by image.

    Args:
        backend: runs the network.
        images: uint8 RGB (H, W, 3), of any sizes.
        config: scale, mode, ratios and flip.
        confidence: also give the probability of the class that won.
        batch_size: most images at a time; None: no limit.
        inputs: what was made of the images beforehand, by `NetworkInput.of` with the same
            settings; None for those that are still to be made.

    Returns:
        One result per image, in their order.
    """
    if not is_plain(config):
        return [segment(backend, image, config, confidence=confidence) for image in images]
    groups: dict[tuple[int, int], list[int]] = {}
    for number, image in enumerate(images):
        groups.setdefault(network_size(image, config), []).append(number)
    given = inputs if inputs is not None else [None] * len(images)
    found: dict[int, Segmentation] = {}
    for numbers in groups.values():
        step = batch_size or len(numbers)
        for start in range(0, len(numbers), step):
            chosen = numbers[start : start + step]
            with torch.inference_mode():
                ready = [given[n] or NetworkInput.of(images[n], config) for n in chosen]
                sizes = [(images[n].shape[0], images[n].shape[1]) for n in chosen]
                views = WholeView.of_batch(backend, ready, sizes)
                for number, view in zip(chosen, views, strict=True):
                    found[number] = decode([view], view.original, confidence)
    return [found[number] for number in range(len(images))]


def is_plain(config: TestConfig) -> bool:
    """Whether these settings mean one plain view of the whole image."""
    return config.mode == "whole" and list(config.ratios) == [1.0] and not config.flip
