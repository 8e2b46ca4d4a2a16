"""Images and measurements of a quantization: calibration inputs, label agreement and mIoU.

Export and float32 network are measured behind the same interface and at the same size, so that
images are resized and padded alike and the difference is the quantization's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.addresses import Address
from cgrseg.config import Config
from cgrseg.config.schema import ChannelsConfig, TestConfig
from cgrseg.data.channels import read_pixels
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.deploy.verify import as_input
from cgrseg.errors import CGRSegError, ConfigError
from cgrseg.formats.description import Description, Size
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.image_sources import find_images
from cgrseg.inference.segmenting import fit_to_sizes, segment_batch
from cgrseg.inference.views import NetworkInput, network_size
from cgrseg.models import CGRSeg
from cgrseg.progress import Progress, shown_progress

if TYPE_CHECKING:
    from cgrseg.evaluation.loop import EvalItems


@dataclass(frozen=True)
class LabeledSplit:
    """Images with labels for measuring mIoU.

    Attributes:
        dataset: the split.
        classes: names in id order.
        ignore_index: label value that is not counted.
        images: number of images that count, from the first on.
        title: what is measured on, in words.
    """

    dataset: EvalItems
    classes: tuple[str, ...]
    ignore_index: int
    images: int
    title: str


@dataclass(frozen=True)
class CalibrationInputs:
    """Input of the export for each calibration image, a whole batch as the file takes it.

    Images are read when they are asked for: only one is in memory.

    Attributes:
        images: image files.
        test: test settings for one view of the whole image.
        description: description of a file for one size.
        progress: called after each image with the number of images done and of all images.
    """

    images: Sequence[Path | Address]
    test: TestConfig
    description: Description
    progress: Progress | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __iter__(self) -> Iterator[NDArray[np.generic]]:
        """Inputs in the order of the images.

        Raises:
            DataError: an image cannot be read.
        """
        taken: list[NDArray[np.generic]] = []
        sizes = self.description.sizes or []

        def keep(array: NDArray[np.generic]) -> NDArray[np.generic]:
            taken.append(array)
            height, width = sizes[0]
            return np.zeros((len(array), 1, height // 8, width // 8), np.float32)

        backend = ExportedBackend(self.description, keep, "calibration")
        for number, path in enumerate(self.images, 1):
            image = read_pixels(path, self.test)
            backend.logits(NetworkInput.of(image, fit_to_sizes(self.test, image, sizes)).array)
            yield taken[0]
            taken.clear()
            if self.progress is not None:
                self.progress(number, len(self.images))


def find_calibration_images(
    calibrate: Sequence[str] | None,
    config: Config | None,
    missing: str,
    limit: int,
    channels: ChannelsConfig | None = None,
) -> list[Path | Address]:
    """Images for the calibration.

    Args:
        calibrate: images, folders and patterns; None: the training split of the dataset.
        config: config of the checkpoint's run; None: it has none.
        missing: why it has none.
        limit: maximum number of images, sampled evenly.
        channels: channels of the images; None: 8-bit RGB.

    Raises:
        ConfigError: neither images nor a config.
        DataError: no image is found.
    """
    if calibrate:
        found = [image.path for image in find_images(calibrate, channels=channels)]
    elif config is not None:
        spec = resolve_spec(config.data)
        pairs = find_pairs(spec, config.data.root, config.data.train_split)
        found = [pair.image for pair in pairs]
    else:
        raise ConfigError(
            "--calibrate",
            found=f"not given, and {missing}",
            expected="images like those that the file is for",
            remedy="for example --calibrate images/",
        )
    return sampled_evenly(found, limit)


def sampled_evenly(images: Sequence[Path | Address], limit: int) -> list[Path | Address]:
    """At most `limit` of the images, sampled evenly."""
    indices = np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int)
    return [images[index] for index in np.unique(indices)]


def most_common_size(images: Sequence[Path | Address], test: TestConfig) -> Size:
    """The most frequent network input size of the images.

    Raises:
        DataError: an image cannot be read.
    """
    sizes = Counter(network_size(read_pixels(path, test), test) for path in images)
    return sizes.most_common(1)[0][0]


def float_backend(model: CGRSeg, description: Description) -> ExportedBackend:
    """The float32 network as an exported file of the same input sizes; `model` in eval mode."""

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        pixels = description.takes == "pixels"
        batch = as_input(array) if pixels else torch.from_numpy(array)  # type: ignore[arg-type]
        with torch.inference_mode():
            found: NDArray[np.generic] = model(batch).numpy()
        return found

    about = description.model_copy(update={"batch": None, "precision": "fp32"})
    return ExportedBackend(about, run, "the float32 network")


def find_labeled_split(
    config: Config | None,
    missing: str,
    split: str | None,
    limit: int | None,
    required: bool,
    test: TestConfig,
) -> tuple[LabeledSplit | None, str]:
    """The split for measuring mIoU; or None, and why there is none.

    Args:
        config: config of the checkpoint's run; None: it has none.
        missing: why it has none.
        split: name of the split; None: the one that the config evaluates.
        limit: maximum number of images.
        required: raise if there is no split: a measurement was asked for.
        test: how images are read.

    Raises:
        CGRSegError: there is none, and it is required.
    """
    if config is None:
        if required:
            raise ConfigError(
                "--data-root, --split, --limit, --max-drop",
                found=f"given, but {missing}",
                expected="a checkpoint with its config, whose dataset mIoU is measured on",
                remedy="leave them out: the share of equal labels on --calibrate decides",
            )
        return None, missing
    try:
        spec = resolve_spec(config.data)
        name = split or config.data.eval_split
        pairs = find_pairs(spec, config.data.root, name)
        dataset = EvalDataset(spec, pairs, test)
    except CGRSegError as error:
        if required:
            raise
        return None, str(error).splitlines()[0]
    count = len(dataset) if limit is None else min(limit, len(dataset))
    title = f"{count} images of {spec.title} {name}"
    return LabeledSplit(dataset, spec.classes, spec.ignore_index, count, title), ""


def mean_iou(backend: ExportedBackend, labeled: LabeledSplit, test: TestConfig) -> float:
    """The mIoU 0..1 of a backend."""
    from cgrseg.evaluation import evaluate_model  # with torchmetrics, a second of imports

    with shown_progress("measuring") as progress:
        result = evaluate_model(
            backend,
            labeled.dataset,
            test,
            classes=labeled.classes,
            ignore_index=labeled.ignore_index,
            limit=labeled.images,
            progress=progress,
        )
    return float(result.scores.mean_iou)


def label_agreement(
    backend: ExportedBackend,
    reference: ExportedBackend,
    images: Sequence[Path | Address],
    test: TestConfig,
) -> float:
    """Mean share 0..1 of the pixels on which two backends give the same label."""
    shares = []
    for path in images:
        image = read_pixels(path, test)
        found, wanted = (
            segment_batch(one, [image], test)[0].labels for one in (backend, reference)
        )
        shares.append(float((found == wanted).mean()))
    return float(np.mean(shares))
