"""From images to label maps, on every backend and in every mode of the published test path.

- whole: the whole image at once; logits are resized to the network's input, the padding is
  cropped, and the rest is resized to the image's own size (two steps, as published);
- slide: windows, whose *logits* are averaged;
- several ratios and a mirrored image: their softmax *probabilities* are averaged.

Where a backend accepts some input sizes only, an image is resized to fill one of them.

Full-size logits never exist.  In mode slide memory grows with the image's width, not its
height; in mode whole the network's features and each view's logits grow with the input's
area, attention does not grow with its square (docs/evaluation.md has figures).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgrseg.config.schema import TestConfig
from cgrseg.data.geometry import Image, resize_label
from cgrseg.devices import cpu_threads
from cgrseg.errors import ConfigError
from cgrseg.inference.backends import Backend, run_labels
from cgrseg.inference.decode import Confidence, Segmentation, View, decode
from cgrseg.inference.views import NetworkInput, network_size, views_of, whole_views

#: Ratios of `--aug-test`, as published for multi-scale results (with flip).
PUBLISHED_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# More images at the same time gain nothing.
_MOST_IMAGES = 8
#: Most pixels labeled at the same time, by :attr:`PlannedImage.pixels`: they limit the memory.
PIXELS_AT_ONCE = _MOST_IMAGES * 512 * 512


def augmented(config: TestConfig) -> TestConfig:
    """The same settings with the published ratios and flip."""
    return config.model_copy(update={"ratios": list(PUBLISHED_RATIOS), "flip": True})


def is_plain(config: TestConfig) -> bool:
    """Whether these settings mean one plain view of the whole image."""
    return config.mode == "whole" and list(config.ratios) == [1.0] and not config.flip


def refuse_other_channels(backend: Backend, config: TestConfig) -> None:
    """Refuse test settings for images of other channels than a network takes.

    Raises:
        ConfigError: as said.
    """
    channels = config.image_channels
    count = 3 if channels is None else len(channels.names or [])
    if count != backend.in_channels:
        listed = "8-bit RGB" if channels is None else ", ".join(channels.names or [])
        raise ConfigError(
            "data.channels",
            found=f"images of {count} channels ({listed})",
            expected=f"{backend.in_channels} channels, which the network takes",
            remedy="use the settings that the checkpoint keeps, or a checkpoint for these channels",
        )


@dataclass(frozen=True)
class PlannedImage:
    """An image with all that is known before the network runs.

    Attributes:
        image: (H, W, C).
        config: test settings whose input the backend accepts.
        size: height and width of the network's input in mode whole at ratio 1.
        input: the network's input, where it was made beforehand.
    """

    image: Image
    config: TestConfig
    size: tuple[int, int]
    input: NetworkInput | None = None

    @property
    def pixels(self) -> int:
        """Pixels of the network's input, or an eighth of the image's where that is more.

        The memory grows with it: the network needs far more per pixel than image and label map.
        """
        return max(self.size[0] * self.size[1], self.image.shape[0] * self.image.shape[1] // 8)


def plan(
    backend: Backend, image: Image, config: TestConfig, *, with_input: bool = False
) -> PlannedImage:
    """Fit test settings to an image and to the sizes that a backend accepts.

    Args:
        backend: will run the network.
        image: (H, W, C).
        config: scale, mode, ratios and flip.
        with_input: make the network's input now, if the settings mean one plain view.

    Raises:
        ConfigError: a mode that the backend cannot do.
    """
    fitted = fit_to_sizes(config, image, backend.sizes)
    if with_input and is_plain(config):
        made = NetworkInput.of(image, fitted)
        return PlannedImage(image, fitted, made.size, made)
    return PlannedImage(image, fitted, network_size(image, fitted))


def grouped(
    backend: Backend, images: Mapping[int, PlannedImage], batch_size: int
) -> Iterator[dict[int, PlannedImage]]:
    """Groups of images that go through the network together.

    Images of one group have equal network inputs.  A backend that accepts some sizes only or
    outputs label maps, and all modes but one plain view of the whole image, run image by image.

    Args:
        backend: will run the network.
        images: numbered images of any sizes.
        batch_size: maximum number of images per group.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, one in images.items():
        by_size.setdefault(one.size, []).append(number)
    plain = all(is_plain(one.config) for one in images.values())
    if backend.sizes is not None or backend.output == "labels" or not plain:
        batch_size = 1
    for numbers in by_size.values():
        for start in range(0, len(numbers), batch_size):
            yield {number: images[number] for number in numbers[start : start + batch_size]}


def segment_group(
    backend: Backend, images: Sequence[PlannedImage], *, confidence: Confidence = False
) -> list[Segmentation]:
    """Label the images of one group of :func:`grouped`.

    Args:
        backend: runs the network.
        images: from :func:`plan`, with the same backend.
        confidence: also give the probability of the winning class.

    Raises:
        ConfigError: a mode that the backend cannot do.
        DataError: the network gave NaN or infinite values.
    """
    sizes = [(one.image.shape[0], one.image.shape[1]) for one in images]
    if backend.output == "labels":
        return [_from_labels(backend, one, confidence) for one in images]
    if not is_plain(images[0].config):
        return [
            _decoded(backend, list(views_of(backend, one.image, one.config)), size, confidence)
            for one, size in zip(images, sizes, strict=True)
        ]
    inputs = [one.input or NetworkInput.of(one.image, one.config) for one in images]
    views = whole_views(backend, inputs, sizes)
    return [_decoded(backend, [view], view.original, confidence) for view in views]


def _decoded(
    backend: Backend, views: Sequence[View], size: tuple[int, int], confidence: Confidence
) -> Segmentation:
    """Decode where the logits are."""
    if backend.on_cpu:
        return decode(views, size, confidence)
    from cgrseg.inference.device_decode import decode_on_device

    return decode_on_device(views, size, backend.device, bool(confidence))


def segment_batch(
    backend: Backend,
    images: Sequence[Image],
    config: TestConfig,
    *,
    confidence: bool = False,
    batch_size: int | None = None,
) -> list[Segmentation]:
    """Label several images.

    Args:
        backend: runs the network.
        images: (H, W, C), of any sizes.
        config: scale, mode, ratios and flip.
        confidence: also give the probability of the winning class.
        batch_size: maximum number of images per batch; None: no limit.

    Returns:
        One result per image, in their order.

    Raises:
        ConfigError: a mode that the backend cannot do.
        DataError: the network gave NaN or infinite values.
    """
    planned = {number: plan(backend, image, config) for number, image in enumerate(images)}
    found: dict[int, Segmentation] = {}
    for group in grouped(backend, planned, batch_size or len(images)):
        results = segment_group(backend, list(group.values()), confidence=confidence)
        found.update(zip(group, results, strict=True))
    return [found[number] for number in planned]


def segment(
    backend: Backend, image: Image, config: TestConfig, *, confidence: bool = False
) -> Segmentation:
    """Label every pixel of one image; arguments and errors as for :func:`segment_batch`."""
    return segment_batch(backend, [image], config, confidence=confidence)[0]


def fit_to_sizes(
    config: TestConfig, image: Image, sizes: Sequence[tuple[int, int]] | None
) -> TestConfig:
    """Test settings whose network input has one of the accepted sizes.

    Args:
        config: test settings as wanted.
        image: (H, W, C).
        sizes: accepted heights and widths; None: any, and the settings stay as they are.

    Raises:
        ConfigError: several scales or windows, which some sizes cannot serve.
    """
    if sizes is None:
        return config
    listed = " and ".join(f"{height}x{width}" for height, width in sizes)
    if list(config.ratios) != [1.0]:
        raise ConfigError(
            "test.ratios",
            found=f"{list(config.ratios)} with a file that takes {listed} only",
            expected="a single scale",
            remedy="export it for any size: cgrseg export CHECKPOINT, without --size",
        )
    if config.mode == "slide":
        if any(tuple(config.crop_size) == size for size in sizes):
            return config
        raise ConfigError(
            "test.crop_size",
            found=f"windows of {config.crop_size[0]}x{config.crop_size[1]} with a file that "
            f"takes {listed} only",
            expected="windows of a size that the file takes",
            remedy=f"set test.crop_size=[{sizes[0][0]},{sizes[0][1]}], with test.stride at "
            "most that",
        )
    if network_size(image, config) in sizes:
        return config
    height, width = image.shape[:2]
    # The size in which the image becomes largest; of equal ones the smaller size.
    best = max(sizes, key=lambda size: (min(size[0] / height, size[1] / width), -size[0] * size[1]))
    factor = min(best[0] / height, best[1] / width)
    scale = tuple(max(1, int(side * factor + 0.5)) for side in sorted((height, width))[::-1])
    return config.model_copy(update={"resize": "keep_ratio", "scale": scale, "divisor": 32})


def _from_labels(backend: Backend, one: PlannedImage, confidence: Confidence) -> Segmentation:
    """One label map, cropped and resized to the image's own size by nearest neighbor."""
    if confidence or not is_plain(one.config):
        wanted = "confidence" if confidence else "windows, several scales or mirroring"
        raise ConfigError(
            "exported model",
            found=f"{wanted} with a file that gives label maps",
            expected="one plain view of the whole image",
            remedy="export it again: cgrseg export CHECKPOINT --output logits",
        )
    ready = one.input or NetworkInput.of(one.image, one.config)
    labels = run_labels(backend, ready.array)[0, : ready.resized[0], : ready.resized[1]]
    whole = resize_label(np.ascontiguousarray(labels), (one.image.shape[0], one.image.shape[1]))
    return Segmentation(whole if backend.num_classes <= 256 else whole.astype(np.int16))


def share_threads(backend: Backend, images: Sequence[PlannedImage]) -> tuple[int, int] | None:
    """Number of images to label at the same time, and of threads for each.

    Several images per thread keep the CPU busy while one of them waits for Python's lock, and get
    most of the time of a CPU that another program uses too.

    Args:
        backend: runs the network.
        images: the first images, from :func:`plan`.

    Returns:
        None: one after another, each on all threads.
    """
    if not images or not backend.side_by_side or not backend.on_cpu:
        return None
    threads = cpu_threads()
    pixels = max(one.pixels for one in images)
    if threads == 1 or not all(is_plain(one.config) for one in images):
        return None
    workers = min(3 * threads, _MOST_IMAGES, PIXELS_AT_ONCE // pixels)
    return (workers, max(1, threads // workers)) if workers > 1 else None
