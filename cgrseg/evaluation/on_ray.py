"""Evaluation of a large split by the workers of a Ray cluster (extra `ray`).

The workers are those of a prediction (:mod:`cgrseg.inference.ray_engine`).  Their counts are
whole numbers, so that the result does not depend on who counted which image.  An image that cannot
be used ends the evaluation, as it does in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from cgrseg.config.schema import TestConfig
from cgrseg.evaluation.loop import EvalItems, Sink, Tally, count_images
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.inference.background import map_in_threads
from cgrseg.inference.predictor import Predictor
from cgrseg.inference.ray_engine import RayCluster, other_network, ray_workers, worker_died
from cgrseg.inference.records import Maker
from cgrseg.progress import Progress

_READERS = 4  # threads that read images ahead


@dataclass(frozen=True)
class _Counting:
    """Predicting and counting images, which are known by their index in the dataset."""

    maker: Maker
    stems: Sequence[str]
    dataset: EvalItems
    test: TestConfig
    num_classes: int
    ignore_index: int
    metrics: Sequence[str]
    batch_size: int
    sinks: Sequence[Sink]

    def run(self, predictor: Predictor, items: Sequence[int]) -> Tally:
        """Counts of images."""
        tally = Tally(self.num_classes, self.ignore_index, self.metrics)
        read = map_in_threads(lambda number: (number, self.dataset[number]), items, _READERS)
        for _ in count_images(
            predictor.backend, read, self.test, tally, self.batch_size, self.sinks
        ):
            pass
        return tally

    def lost(self, item: int, reason: str) -> NoReturn:
        """End the evaluation."""
        raise worker_died(self.stems[item], reason)


def evaluate_on_ray(
    open_predictor: Callable[[], Predictor],
    dataset: EvalItems,
    test: TestConfig,
    cluster: RayCluster,
    *,
    classes: Sequence[str],
    checkpoint: str | Path,
    stems: Sequence[str],
    weights: str | None = None,
    ignore_index: int = 255,
    metrics: Sequence[str] = ("mIoU",),
    batch_size: int = 1,
    limit: int | None = None,
    sinks: Sequence[Sink] = (),
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate a network on a split.

    Args:
        open_predictor: called once in each worker, so that it must be picklable.
        dataset: the split; all workers see its files.
        test: scale, mode, ratios and flip.
        cluster: where the workers run.
        classes: names in id order.
        checkpoint: source of the network.
        stems: names of the images, for messages.
        weights: digest of the weights that the workers must have; None: any.
        ignore_index: label value that is not counted.
        metrics: names of metrics, as of :func:`cgrseg.evaluation.evaluate_model`.
        batch_size: number of images of equal size per batch.
        limit: maximum number of images.
        sinks: called with every image, in the workers.
        progress: called with the number of finished images and of all images.

    Returns:
        The result.

    Raises:
        ConfigError: a cluster without room for one worker, or workers whose networks differ.
        DataError: an image or label that cannot be used; the message names it.
        EnvironmentProblem: Ray is missing or cannot be reached, or workers die whatever they do.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    tally = Tally(len(classes), ignore_index, metrics)
    with ray_workers(cluster, open_predictor, checkpoint) as pool:
        maker = pool.maker()
        if weights is not None and maker.made["weights"] != weights:
            raise other_network("another network in the workers")
        job = _Counting(
            maker, stems, dataset, test, len(classes), ignore_index, metrics, batch_size, sinks
        )
        for _, counted in pool.run(range(count), job):
            tally.merge(counted)
            if progress is not None:
                progress(len(tally.rows), count)
    return tally.combined(classes, 1, torch.device("cpu"))
