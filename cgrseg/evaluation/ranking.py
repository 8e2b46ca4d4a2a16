"""What to label or mend next: orders of images by what a network says about them.

- Labeled images by suspicion of a wrong label: :func:`rank_labels`.
- Unlabeled images by uncertainty and by distance to the labeled ones: :func:`rank_images`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import Address
from cgrseg.data.channels import read_pixels
from cgrseg.data.pair_files import load_image, load_label
from cgrseg.data.pairs import Pair
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError
from cgrseg.evaluation.selection import labeling_order
from cgrseg.evaluation.suspicion import (
    ClassConfidence,
    SuspectRegion,
    discounted,
    pixel_suspicion,
    suspect_regions,
)
from cgrseg.inference.image_sources import FoundImage
from cgrseg.inference.pixel_scores import image_features, pixel_scores
from cgrseg.inference.predictor import Predictor
from cgrseg.progress import Progress


@dataclass(frozen=True)
class RankedLabel:
    """A labeled image and the suspicion that its label is wrong.

    Attributes:
        pair: image and label.
        size: height and width in pixels.
        suspicion: 0..1, see :func:`rank_labels`.
        regions: suspect regions, those of the largest sum of suspicion first.
    """

    pair: Pair
    size: tuple[int, int]
    suspicion: float
    regions: tuple[SuspectRegion, ...]


@dataclass(frozen=True)
class RankedImage:
    """An unlabeled image and the use of labeling it.

    Attributes:
        image: the file, and its name in results.
        uncertainty: mean entropy of the pixels' probabilities, divided by the largest possible
            one: 0 (certain) to 1 (all classes equally likely).
        distance: distance to the nearest labeled image, divided by the largest of these, 0..1; 1
            without labeled images.
        score: uncertainty times the distance to the nearest image that is labeled or ranked above
            this one, 0..1.
    """

    image: FoundImage
    uncertainty: float
    distance: float
    score: float


@dataclass(frozen=True)
class Problem:
    """An image that could not be ranked, and why."""

    path: Path | Address
    error: DataError


def rank_labels(
    predictor: Predictor,
    spec: DatasetSpec,
    pairs: Sequence[Pair],
    *,
    progress: Progress | None = None,
) -> tuple[list[RankedLabel], list[Problem]]:
    """Order labeled images by suspicion of a wrong label.

    The suspicion of an image is the sum over the pixels of its suspect regions
    (:mod:`cgrseg.evaluation.suspicion`), divided by its number of labeled pixels.

    Args:
        predictor: a network with the classes of the dataset.
        spec: the dataset.
        pairs: images with labels.
        progress: called with the number of finished images and of all.

    Returns:
        The ranking, the most suspicious first, and the images that could not be ranked.

    Raises:
        ConfigError: the network gives label maps only.
    """
    confidence = ClassConfidence(spec.num_classes)
    problems: list[Problem] = []
    kept: list[Pair] = []
    regions: list[list[SuspectRegion]] = []
    sizes: list[tuple[int, int]] = []
    labeled: list[int] = []
    # Regions need the means over all images.  Meanwhile the probabilities of pixels that disagree
    # are kept: the others are never suspect.
    with tempfile.TemporaryDirectory(prefix="cgrseg-rank-") as folder:
        for done, pair in enumerate(pairs, start=1):
            try:
                labels = load_label(spec, pair)
                image = load_image(pair, labels, predictor.test)
                scores = pixel_scores(predictor.backend, image, predictor.test, labels)
            except DataError as error:
                problems.append(Problem(pair.image, error))
                continue
            assert scores.given is not None
            confidence.add(labels, scores.given)
            disagreeing = (labels < spec.num_classes) & (labels != scores.prediction)
            np.savez_compressed(
                Path(folder) / f"{len(kept)}.npz",
                labels=labels,
                prediction=scores.prediction,
                disagreeing=disagreeing,
                shares=np.stack([scores.confidence, scores.given])[:, disagreeing],
            )
            kept.append(pair)
            sizes.append((labels.shape[0], labels.shape[1]))
            labeled.append(int((labels < spec.num_classes).sum()))
            if progress is not None:
                progress(done, len(pairs))
        means = confidence.means()
        for number in range(len(kept)):
            with np.load(Path(folder) / f"{number}.npz") as stored:
                labels, prediction = stored["labels"], stored["prediction"]
                shares = np.zeros((2, *labels.shape), np.float32)
                shares[:, stored["disagreeing"]] = stored["shares"]
            suspicion = pixel_suspicion(labels, prediction, shares[0], shares[1], means)
            regions.append(suspect_regions(suspicion, labels, prediction))
    found = [
        RankedLabel(
            pair, size, sum(one.pixels * one.suspicion for one in own) / max(pixels, 1), tuple(own)
        )
        for pair, size, pixels, own in zip(
            kept, sizes, labeled, discounted(regions, confidence.pixels), strict=True
        )
    ]
    return sorted(found, key=lambda one: (-one.suspicion, one.pair.stem)), problems


def rank_images(
    predictor: Predictor,
    images: Sequence[FoundImage],
    labeled: Sequence[Path] = (),
    *,
    progress: Progress | None = None,
) -> tuple[list[RankedImage], list[Problem]]:
    """Order unlabeled images by the use of labeling them (:mod:`cgrseg.evaluation.selection`).

    Args:
        predictor: any network.
        images: unlabeled images.
        labeled: images that have labels already.
        progress: called with the number of finished images and of all, labeled ones included.

    Returns:
        The ranking, the most useful first, and the images that could not be ranked.

    Raises:
        ConfigError: the network gives label maps only.
    """
    problems: list[Problem] = []
    kept: list[FoundImage] = []
    uncertainty: list[float] = []
    features: list[NDArray[np.float32]] = []
    known: list[NDArray[np.float32]] = []
    total = len(images) + len(labeled)
    items: list[FoundImage | Path] = [*images, *labeled]
    for done, item in enumerate(items, start=1):
        path = item.path if isinstance(item, FoundImage) else item
        try:
            image = read_pixels(path, predictor.test)
            vector = image_features(predictor.backend, image, predictor.test)
            if isinstance(item, FoundImage):
                scores = pixel_scores(predictor.backend, image, predictor.test)
                uncertainty.append(float(scores.entropy.mean()))
                features.append(vector)
                kept.append(item)
            else:
                known.append(vector)
        except DataError as error:
            problems.append(Problem(path, error))
        if progress is not None:
            progress(done, total)
    if not kept:
        return [], problems
    order = labeling_order(
        np.array(uncertainty), np.stack(features), np.array(known).reshape(-1, len(features[0]))
    )
    return [
        RankedImage(kept[k], uncertainty[k], float(order.distance[k]), float(order.score[k]))
        for k in order.order
    ], problems
