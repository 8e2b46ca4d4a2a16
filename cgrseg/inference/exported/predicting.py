"""Photos of any size on files that take some sizes only, or give label maps; and on networks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cgrseg.config.schema import TestConfig
from cgrseg.data.geometry import resize_label
from cgrseg.data.test_transform import TestTransform
from cgrseg.errors import ConfigError
from cgrseg.inference.backends import Backend
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.exported.description import Size
from cgrseg.inference.modes import segment_batch
from cgrseg.inference.views import Image, NetworkInput, network_input, network_size

# Photos up to which one thread decodes as fast as several, in all.
_MOST_PIXELS = 1 << 20


def segment_with(
    backend: Backend,
    images: Sequence[Image],
    config: TestConfig,
    *,
    confidence: bool = False,
    batch_size: int | None = None,
    inputs: Sequence[NetworkInput | None] | None = None,
) -> list[Segmentation]:
    """Label images with whatever runs the network: a file in its own way, all else in batches.

    Arguments and result are those of :func:`cgrseg.inference.modes.segment_batch`; a file has
    no use for `inputs`, because it may take other sizes than they have.

    Raises:
        ConfigError: a mode that a file cannot do.
    """
    if backend.sizes is not None or backend.output == "labels" or backend.has_threads:
        return segment_exported(
            backend, images, config, confidence=confidence, batch_size=batch_size, inputs=inputs
        )
    return segment_batch(
        backend, images, config, confidence=confidence, batch_size=batch_size, inputs=inputs
    )


def segment_exported(
    backend: Backend,
    images: Sequence[Image],
    config: TestConfig,
    *,
    confidence: bool = False,
    batch_size: int | None = None,
    inputs: Sequence[NetworkInput | None] | None = None,
) -> list[Segmentation]:
    """Label images with an exported file.

    A file for any size does what the checkpoint does.  For one that takes some sizes only,
    every photo is resized, keeping its ratio, so that it fills one of them as well as it can.

    Args:
        backend: over the file.
        images: uint8 RGB (H, W, 3), of any sizes.
        config: scale, mode, ratios and flip.
        confidence: also give the probability of the class that won.
        batch_size: most images at a time; None: no limit.
        inputs: made beforehand, for a file of any size.

    Raises:
        ConfigError: a mode that the file cannot do.
    """
    with one_thread_beside(backend, sum(image.shape[0] * image.shape[1] for image in images)):
        if backend.sizes is None and backend.output == "logits":
            return segment_batch(
                backend,
                images,
                config,
                confidence=confidence,
                batch_size=batch_size,
                inputs=inputs,
            )
        found = []
        for image in images:  # each with settings of its own
            fitted = fit(config, image, backend.sizes)
            if backend.output == "labels":
                found.append(_from_labels(backend, image, fitted, confidence))
            else:
                found += segment_batch(backend, [image], fitted, confidence=confidence)
        return found


def fit(config: TestConfig, image: Image, sizes: Sequence[Size] | None) -> TestConfig:
    """Settings whose network input is one of the sizes.

    Args:
        config: what is wanted.
        image: uint8 RGB (H, W, 3).
        sizes: heights and widths; None: any, and the settings stay as they are.

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
    # The largest picture wins; of equal ones the smaller file size.
    best = max(sizes, key=lambda size: (min(size[0] / height, size[1] / width), -size[0] * size[1]))
    factor = min(best[0] / height, best[1] / width)
    scale = tuple(max(1, int(side * factor + 0.5)) for side in sorted((height, width))[::-1])
    return config.model_copy(update={"resize": "keep_ratio", "scale": scale, "divisor": 32})


@contextlib.contextmanager
def one_thread_beside(backend: Backend, pixels: int) -> Iterator[None]:
    """PyTorch on one thread, around a runtime that has threads of its own, for small photos.

    Decoding a small photo takes as long on one thread as on several.  But several go on
    spinning for milliseconds afterwards, on cores that the runtime needs for the next photo.

    Python threads may predict side by side: each leaves with the number of threads that the
    first found.  One that uses PyTorch for the first time meanwhile, in another way, would
    begin with one thread.

    Args:
        backend: runs the network; nothing changes for those that run in PyTorch itself.
        pixels: of all photos.
    """
    if not backend.has_threads or pixels > _MOST_PIXELS:
        yield
        return
    with _ASIDE.lock:
        if _ASIDE.users == 0:
            _ASIDE.threads = torch.get_num_threads()
        _ASIDE.users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _ASIDE.lock:
            _ASIDE.users -= 1
            torch.set_num_threads(_ASIDE.threads)


@dataclass
class _Aside:
    """Who keeps PyTorch to one thread now.

    Attributes:
        lock: for changes.
        users: Python threads that predict.
        threads: of PyTorch, before the first of them.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    threads: int = 1


_ASIDE = _Aside()


def _from_labels(
    backend: Backend, image: Image, config: TestConfig, confidence: bool
) -> Segmentation:
    """One label map, cut to the photo and resized to its size by nearest neighbour."""
    if confidence or config.mode == "slide" or list(config.ratios) != [1.0] or config.flip:
        wanted = "confidence" if confidence else "windows, several scales or mirroring"
        raise ConfigError(
            "exported model",
            found=f"{wanted} with a file that gives label maps",
            expected="one plain look at the whole photo",
            remedy="export it again: cgrseg export CHECKPOINT --output logits",
        )
    transform = TestTransform(config)
    resized = transform.resize(image)
    batch = network_input(transform.normalise(resized), network_size(image, config))
    labels = backend.labels(batch)[0, : resized.shape[0], : resized.shape[1]].numpy()
    whole = resize_label(np.ascontiguousarray(labels), (image.shape[0], image.shape[1]))
    return Segmentation(whole if backend.num_classes <= 256 else whole.astype(np.int16))
