"""Data of a training: an endless stream of batches, and the evaluation split."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from cgrseg.addresses import local_folder
from cgrseg.config.schema import Config, DataConfig
from cgrseg.data.check import check_dataset
from cgrseg.data.check.classes import refuse_nothing_to_learn
from cgrseg.data.check.leakage import trained_on
from cgrseg.data.dataset import (
    EvalDataset,
    GrowingCrops,
    TrainDataset,
    initialize_worker,
    with_measurements,
)
from cgrseg.data.pairs import Pair, find_pairs, list_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.data.sampling import StreamSampler
from cgrseg.data.sources import extra_settings, trained_splits, unlabeled_images
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.devices import Placement
from cgrseg.evaluation.loop import Sink, evaluate_model
from cgrseg.evaluation.metrics import SegmentationScores

_LOG = logging.getLogger("cgrseg.training")


class DataSource(Protocol):
    """Interface of the data of a training.

    Attributes:
        spec: class names and palette.
        size: number of training images.
    """

    spec: DatasetSpec
    size: int

    @property
    def images_per_iteration(self) -> int:
        """Number of images of all processes per optimizer step."""

    def batches(self, start: int) -> Any:
        """Endless batches of this process from an iteration on.

        A batch is a dictionary: normalized image float32 (N, C, H, W), label int64 (N, H, W),
        position and index int64 (N,), indices of the images mixed in int64 (N, M), -1 for none.
        """

    def describe(self, indices: list[int]) -> list[dict[str, Any]]:
        """Image and label file per index of a batch, for messages."""

    def image_lists(self) -> dict[str, list[str]]:
        """Stems of the "training" images, and of "validation" and "unlabeled" ones, if any."""

    def evaluate(
        self,
        model: nn.Module,
        device: torch.device,
        rank: int,
        world_size: int,
        *,
        sinks: Sequence[Sink] = (),
        ready: Callable[[], None] | None = None,
    ) -> SegmentationScores:
        """Scores of a network on the evaluation split, over all processes.

        Args:
            model: the network.
            device: device of this process.
            rank: rank of this process.
            world_size: number of processes.
            sinks: called with each image of this process and its prediction.
            ready: called when this process has finished its images, before it waits for the
                others; an exception of it ends the evaluation.
        """


class DatasetSource:
    """The dataset of a config.

    Args:
        config: config of the run.
        placement: device and processes.

    Attributes:
        config: the config, with what was measured on the images.

    Raises:
        DataError: the data is missing or cannot be used; the message says where to get it and
            where it goes.
    """

    def __init__(self, config: Config, placement: Placement) -> None:
        self.placement = placement
        if config.data.check and placement.rank == 0:
            check_before_training(config)
        self.config = config = with_measurements(config)
        self.train = TrainDataset.from_config(config)
        self.spec = self.train.spec
        if placement.rank == 0:
            labeled = self.train.pairs[: self.train.sources[0][0]]
            refuse_nothing_to_learn(self.spec, config.data.root, config.data.train_split, labeled)
        self.validation: EvalDataset | None = None
        if config.train.evaluate:
            self.validation = EvalDataset(
                self.spec,
                find_pairs(self.spec, config.data.root, config.data.eval_split),
                config.preprocessing,
            )
        self.size = len(self.train)

    @property
    def images_per_iteration(self) -> int:
        """See :class:`DataSource`."""
        train = self.config.train
        return train.images_per_batch * train.accumulate * self.placement.world_size

    def batches(self, start: int) -> DataLoader[Any]:
        """See :class:`DataSource`."""
        settings = self.config.train
        sampler = StreamSampler(
            self.train.sources,
            settings.seed,
            settings.images_per_batch,
            rank=self.placement.rank,
            world_size=self.placement.world_size,
            start_step=start,
            accumulate=settings.accumulate,
        )
        workers = self.config.data.loader_processes
        return DataLoader(
            GrowingCrops(self.train, self.config, self.images_per_iteration),
            batch_size=settings.images_per_batch,
            sampler=sampler,
            num_workers=workers,
            pin_memory=self.placement.kind == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=initialize_worker,
        )

    def describe(self, indices: list[int]) -> list[dict[str, Any]]:
        """See :class:`DataSource`."""
        pairs = [self.train.pairs[index] for index in indices]
        return [
            {"image": str(pair.image), "label": None if pair.label is None else str(pair.label)}
            for pair in pairs
        ]

    def image_lists(self) -> dict[str, list[str]]:
        """See :class:`DataSource`."""
        pairs = self.train.pairs
        lists = {"training": [pair.stem for pair in pairs if pair.label is not None]}
        if unlabeled := [pair.stem for pair in pairs if pair.label is None]:
            lists["unlabeled"] = unlabeled
        if self.validation is not None:
            lists["validation"] = [pair.stem for pair in self.validation.pairs]
        return lists

    def evaluate(
        self,
        model: nn.Module,
        device: torch.device,
        rank: int,
        world_size: int,
        *,
        sinks: Sequence[Sink] = (),
        ready: Callable[[], None] | None = None,
    ) -> SegmentationScores:
        """See :class:`DataSource`; each image exactly once over all processes, in float32."""
        if self.validation is None:
            raise RuntimeError("this run was set up without evaluation")
        if next(model.parameters()).dtype == torch.float64:
            model = copy.deepcopy(model).float()
        return evaluate_model(
            model,
            self.validation,
            self.config.preprocessing,
            classes=self.spec.classes,
            ignore_index=self.spec.ignore_index,
            device=device,
            rank=rank,
            world_size=world_size,
            workers=self.config.data.loader_processes,
            sinks=sinks,
            ready=ready,
        ).scores


def _pairs(data: DataConfig, splits: Iterable[str]) -> list[Pair]:
    spec = resolve_spec(data)
    return [
        pair for split in splits for pair in list_pairs(spec, local_folder(data.root), split)[0]
    ]


def check_before_training(config: Config) -> None:
    """Run the quick form of `cgrseg data check` on each training set, and print its warnings.

    Raises:
        DataError: an error of the check.
    """
    test, evaluate = config.preprocessing, config.train.evaluate
    reports = [check_dataset(config.data, evaluate=evaluate, test=test, quick=True)]
    split = config.data.eval_split
    further = config.data.extra or config.data.unlabeled
    validation = _pairs(config.data, [split]) if further and evaluate else []
    for folder in config.data.unlabeled:
        images = unlabeled_images(config.data, folder)
        reports[0].add(trained_on(validation, split, images, "data.unlabeled"))
    for extra in extra_settings(config.data):
        splits = trained_splits(extra)
        report = check_dataset(extra, splits=splits, test=test, quick=True)
        report.add(trained_on(validation, split, _pairs(extra, splits)))
        reports.append(report)
    for report in reports:
        report.raise_for_errors()
        for finding in report.findings:
            if finding.severity == "warning":
                _LOG.warning(
                    "%s: %s\n  what to do: %s", finding.file, finding.message, finding.remedy
                )
