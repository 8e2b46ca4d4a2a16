"""Evaluation loop: predict a split, count pixels, combine the counts of all processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from cgrseg.config.schema import TestConfig
from cgrseg.data.dataset import initialize_worker
from cgrseg.data.sampling import ShardSampler
from cgrseg.distributed import gather_in_order, others_present
from cgrseg.errors import ConfigError, DataError
from cgrseg.evaluation.extra_metrics import (
    BoundaryIoU,
    Calibration,
    CalibrationError,
    boundary_scores,
)
from cgrseg.evaluation.metrics import ConfusionMatrix, Counts
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.decode import Segmentation
from cgrseg.inference.segmenting import refuse_other_channels, segment_batch
from cgrseg.precision import AnyPrecision
from cgrseg.progress import Progress

COUNTED = ("mIoU", "mDice", "mFscore")
"""Metrics that follow from the confusion matrix, always computed."""
EXTRA = ("mBoundaryIoU", "ECE")
"""Metrics that cost time of their own, computed when asked for."""


class EvalItems(Protocol):
    """A split of a dataset, image by image."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Keys: image (H, W, C), label uint8 (H, W) or None, stem."""
        ...


class Sink(Protocol):
    """Receiver of every predicted image, such as a writer of label files."""

    def __call__(self, item: Mapping[str, Any], found: Segmentation) -> None:
        """Receive one item of the split and its prediction."""
        ...


class Tally:
    """All counts of one process.

    Args:
        num_classes: number of classes K.
        ignore_index: label value that is not counted.
        metrics: names of metrics; those of :data:`EXTRA` are added.
    """

    def __init__(self, num_classes: int, ignore_index: int, metrics: Sequence[str]) -> None:
        # `combined` synchronizes: a process that evaluates alone must not wait for others.
        alone = {"sync_on_compute": False}
        self.confusion = ConfusionMatrix(num_classes, ignore_index, **alone)
        self.boundary = (
            BoundaryIoU(num_classes, ignore_index, **alone) if "mBoundaryIoU" in metrics else None
        )
        self.calibration = CalibrationError(ignore_index, **alone) if "ECE" in metrics else None
        self.rows: dict[int, tuple[str, NDArray[np.int64], Counts]] = {}
        self.num_classes = num_classes

    def add(self, number: int, item: Mapping[str, Any], found: Segmentation) -> None:
        """Count one image; `number` is its index in the dataset.

        Raises:
            DataError: the label has another size, or ids out of range.
        """
        label = item["label"]
        if label is None:
            empty = np.zeros(0, dtype=np.int64)
            self.rows[number] = (item["stem"], empty, np.zeros((3, 0), dtype=np.int64))
            return
        if label.shape != found.labels.shape:
            raise DataError(
                item["stem"],
                found=f"a label of {label.shape[0]}x{label.shape[1]} for an image of "
                f"{found.labels.shape[0]}x{found.labels.shape[1]} pixels (height x width)",
                expected="the same size",
                remedy="check that image and label belong together",
            )
        prediction, truth = torch.from_numpy(found.labels), torch.from_numpy(label)
        try:
            self.confusion.update(prediction, truth)
        except DataError as error:
            raise DataError(f"{item['stem']}: {error}") from error
        matrix = self.confusion.latest.numpy()
        counts = np.stack([matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)])
        present = np.flatnonzero(counts.any(axis=0))
        self.rows[number] = (item["stem"], present, counts[:, present])
        if self.boundary is not None:
            self.boundary.update(found.labels, label)
        if self.calibration is not None:
            self.calibration.update(prediction, torch.from_numpy(found.confidence), truth)

    def merge(self, other: Tally) -> None:
        """Add the counts of other images, with the same metrics."""
        self.confusion.merge_state(other.confusion)
        if self.boundary is not None and other.boundary is not None:
            self.boundary.merge_state(other.boundary)
        if self.calibration is not None and other.calibration is not None:
            self.calibration.merge_state(other.calibration)
        self.rows |= other.rows

    def combined(
        self, classes: Sequence[str], world_size: int, device: torch.device
    ) -> EvaluationResult:
        """The result over all processes, the same in each."""
        metrics = [m for m in (self.confusion, self.boundary, self.calibration) if m is not None]
        with others_present():
            if world_size > 1:
                for metric in metrics:
                    metric.to(device)
                    metric.sync()
            rows = gather_in_order(self.rows, world_size)
        counts = np.zeros((len(rows), 3, self.num_classes), dtype=np.int64)
        for row, (_, present, values) in zip(counts, rows, strict=True):
            row[:, present] = values
        return EvaluationResult(
            classes=tuple(classes),
            stems=tuple(stem for stem, _, _ in rows),
            # The sums themselves, since `compute` warns where a share had no image.
            confusion=self.confusion.counts.cpu().numpy(),
            counts=counts,
            boundary=None if self.boundary is None else boundary_scores(self.boundary.counts),
            calibration=None
            if self.calibration is None
            else Calibration.from_counts(self.calibration.counts),
        )


def evaluate_model(
    model: nn.Module | Backend,
    dataset: EvalItems,
    test: TestConfig,
    *,
    classes: Sequence[str] | None = None,
    ignore_index: int = 255,
    metrics: Sequence[str] = ("mIoU",),
    device: str | torch.device | None = None,
    precision: AnyPrecision = "fp32",
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    batch_size: int = 1,
    limit: int | None = None,
    sinks: Sequence[Sink] = (),
    progress: Progress | None = None,
    ready: Callable[[], None] | None = None,
) -> EvaluationResult:
    """Evaluate a network on a split, alone or as one of several processes.

    Args:
        model: a network (left in the mode it was in, on `device`), or a backend.
        dataset: the split; images whose label is None are predicted but not counted.
        test: scale, mode, ratios and flip.
        classes: names in id order; None: the numbers.
        ignore_index: label value that is not counted.
        metrics: names out of :data:`COUNTED` and :data:`EXTRA`.
        device: device to run on; None: that of the network.
        precision: "fp32", which published numbers were made with, "bf16", "fp16" or "auto".
        rank: rank of this process, which takes every `world_size`-th image.
        world_size: number of processes; above 1 they must have joined a process group.
        workers: number of loader processes that read images ahead.
        batch_size: number of images of equal size per batch.
        limit: maximum number of images.
        sinks: called with every image of this process.
        progress: called with the number of finished images and of all images of this process.
        ready: called when this process has finished its images, before it waits for the others;
            what it raises ends the evaluation.

    Returns:
        The same result in every process, whatever their number.

    Raises:
        ConfigError: a metric that does not exist, or class names that do not fit.
        DataError: an image or label that cannot be used; the message names it.
    """
    check_metrics(metrics)
    was_training = isinstance(model, nn.Module) and model.training
    backend = TorchBackend(model, device, precision) if isinstance(model, nn.Module) else model
    refuse_other_channels(backend, test)
    outputs = backend.num_classes
    names = tuple(classes) if classes is not None else tuple(map(str, range(outputs)))
    if len(names) != outputs:
        raise ConfigError(
            "evaluation",
            found=f"a network with {outputs} classes",
            expected=f"{len(names)} classes, as the dataset has",
            remedy="choose the checkpoint that was trained on this dataset, or the config "
            "that belongs to the checkpoint",
        )
    images = len(dataset) if limit is None else min(limit, len(dataset))
    shard = ShardSampler(images, rank, world_size)
    tally = Tally(backend.num_classes, ignore_index, metrics)
    try:
        done = 0
        for count in count_images(
            backend, _loaded(dataset, shard, workers), test, tally, batch_size, sinks
        ):
            done += count
            if progress is not None:
                progress(done, len(shard))
        if ready is not None:
            ready()
        return tally.combined(names, world_size, backend.device)
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse unknown metrics.

    Raises:
        ConfigError: names the known ones.
    """
    known = (*COUNTED, *EXTRA)
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise ConfigError(
            "metrics",
            found=", ".join(unknown),
            expected=f"names out of {', '.join(known)}",
            remedy="correct the name",
        )


class _Numbered:
    """Items with their index in the dataset."""

    def __init__(self, dataset: EvalItems) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[int, Mapping[str, Any]]:
        return index, self._dataset[index]


def _as_is(item: Any) -> Any:
    return item


def count_images(
    backend: Backend,
    items: Iterator[tuple[int, Mapping[str, Any]]],
    test: TestConfig,
    tally: Tally,
    batch_size: int,
    sinks: Sequence[Sink],
) -> Iterator[int]:
    """Predict and count images, and yield the number of each batch.

    Args:
        backend: the network.
        items: images with their index in the dataset.
        test: scale, mode, ratios and flip.
        tally: gets the counts.
        batch_size: number of images of equal size per batch.
        sinks: called with every image.

    Raises:
        DataError: an image or label that cannot be used; the message names it.
    """
    # Several batches are read at a time, so that images of equal size form a batch.
    together = batch_size if batch_size == 1 else 4 * batch_size
    while batch := list(itertools.islice(items, together)):
        found = _predict(backend, batch, test, tally.calibration is not None, batch_size)
        for (number, item), one in zip(batch, found, strict=True):
            tally.add(number, item, one)
            for sink in sinks:
                sink(item, one)
        yield len(batch)


def _loaded(
    dataset: EvalItems, shard: ShardSampler, workers: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    loader: DataLoader[Any] = DataLoader(
        _Numbered(dataset),  # type: ignore[arg-type]
        batch_size=None,
        sampler=shard,
        num_workers=min(workers, len(shard)),
        collate_fn=_as_is,
        worker_init_fn=initialize_worker,
    )
    return iter(loader)


def _predict(
    backend: Backend,
    batch: Sequence[tuple[int, Mapping[str, Any]]],
    test: TestConfig,
    confidence: bool,
    batch_size: int,
) -> list[Segmentation]:
    """Predictions of a batch; errors name its images."""
    images = [item["image"] for _, item in batch]
    try:
        return segment_batch(backend, images, test, confidence=confidence, batch_size=batch_size)
    except DataError as error:
        names = ", ".join(str(item["stem"]) for _, item in batch)
        raise DataError(f"{names}: {error}") from error
