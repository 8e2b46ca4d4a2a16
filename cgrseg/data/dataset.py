"""Training and evaluation samples from pairs on disk.

Every label is checked when it is read: an id that is no class stops the run with the file's name
before it reaches a loss.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cgrseg.augmentations import MIXES
from cgrseg.config.schema import AugmentConfig, ChannelsConfig, Config, TestConfig
from cgrseg.data.channels import Pixels, measured_channels, read_pixels
from cgrseg.data.image_files import Reduction, is_jpeg
from cgrseg.data.label_files import read_label
from cgrseg.data.pair_files import label_path, load_image, load_label
from cgrseg.data.pairs import Pair, find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.data.sampling import Key, draw_index, sample_generator
from cgrseg.data.sources import Source, training_sources
from cgrseg.data.train_transform import Plan, TrainTransform, class_counts
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError
from cgrseg.processes import end_when_parent_terminates, end_with_parent, ignore_signals


class TrainSample(TypedDict):
    """One training sample."""

    image: Tensor  # float32 (C, h, w), normalized
    label: Tensor  # int64 (h, w), training ids
    position: int
    index: int
    further: Tensor  # int64 (M,), indices of the images mixed in; -1: none


class EvalSample(TypedDict):
    """One image with its label at full size."""

    image: Pixels  # (H, W, C): uint8 RGB, or stored values of other channels
    channels: ChannelsConfig | None
    label: NDArray[np.uint8]  # (H, W), training ids
    stem: str
    image_path: str
    label_path: str
    index: int


COUNTED_LABELS = 1000
"""Largest number of labels that class weights are taken from."""

Sample = TypeVar("Sample", TrainSample, EvalSample)


class _PairDataset(Dataset[Sample]):
    """Samples from pairs.

    Args:
        spec: the dataset.
        pairs: images with labels.
        test: how images are read; None: as 8-bit RGB.

    Raises:
        DataError: a pair without a label.
    """

    def __init__(
        self, spec: DatasetSpec, pairs: Sequence[Pair], test: TestConfig | None = None
    ) -> None:
        self.spec = spec
        self.pairs = list(pairs)
        for pair in self.pairs:
            label_path(spec, pair)
        self.test = TestConfig() if test is None else test

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)


def with_measurements(config: Config) -> Config:
    """The config with what its settings leave to a measurement on the training images.

    That is mean, deviation and types of channels (not of 8-bit RGB), and class weights.  What is
    given as numbers stays.

    Raises:
        DataError: an image or a label that cannot be used, or images of several types.
    """
    channels, weights = config.data.channels, config.loss.class_weights
    if channels.names is None and not isinstance(weights, str):
        return config
    first, *_ = training_sources(config.data)
    if channels.names is not None:
        channels = measured_channels([pair.image for pair in first.pairs], channels)
    if isinstance(weights, str):
        weights = balanced_weights(first, weights)
    data = config.data.model_copy(update={"channels": channels})
    loss = config.loss.model_copy(update={"class_weights": weights})
    return config.model_copy(update={"data": data, "loss": loss})


def balanced_weights(source: Source, how: Literal["auto", "median"]) -> list[float]:
    """Weights per class from the labels of a training set, rarer classes having larger ones.

    "auto" is 1 / ln(1.02 + p_c), where p_c is the share of the labeled pixels (ENet, Paszke et al.
    2016); "median" is the median of f divided by f_c, where f_c is the share among the pixels of
    the images with the class (Eigen and Fergus 2015), and the largest of these for classes that do
    not occur.  All are scaled so that their mean over the labeled pixels is 1.

    At most 1,000 labels are read, spread evenly.

    Raises:
        DataError: a label that cannot be used, or no labeled pixel.
    """
    pairs, spec = source.pairs, source.spec
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), COUNTED_LABELS)).round().astype(int)
    labels = (load_label(spec, pairs[k]) for k in chosen)
    counts = np.stack([class_counts(one) for one in labels]).astype(np.float64)
    counts[:, spec.ignore_index] = 0
    counts = counts[:, : spec.num_classes]  # (labels, K)
    total = counts.sum(axis=0)
    there = total > 0
    if not there.any():
        raise DataError(
            pairs[0].label or pairs[0].image,
            found="no labeled pixel in it and the other labels that were counted",
            expected="labels to weight the classes by",
            remedy="check them with `cgrseg data check`, or give loss.class_weights as numbers",
        )
    share = total / total.sum()
    if how == "auto":
        weights = 1 / np.log(1.02 + share)
    else:
        around = (counts.sum(axis=1)[:, None] * (counts > 0)).sum(axis=0)
        frequency = total[there] / around[there]
        weights = np.full(len(total), np.median(frequency) / frequency.min())
        weights[there] = np.median(frequency) / frequency
    return [float(value) for value in weights / (share * weights).sum()]


class TrainDataset(_PairDataset[TrainSample]):
    """Augmented crops.  The key (position, index) selects the image and the randomness.

    Further crops that a sample is mixed of (:data:`cgrseg.augmentations.MIXES`) are drawn from all
    training sets by weight.  An image can be mixed with another crop of itself.

    Args:
        spec: the dataset.
        pairs: images with labels.
        augment: settings of the train pipeline.
        seed: seed of the augmentation.
        test: how images are read; None: as 8-bit RGB.
        extra: further training sets, and folders of unlabeled images, whose labels are ignored
            everywhere; indices of their images follow those of `pairs`.

    Attributes:
        sources: number of images and weight of each training set.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        pairs: Sequence[Pair],
        augment: AugmentConfig,
        seed: int = 0,
        test: TestConfig | None = None,
        extra: Sequence[Source] = (),
    ) -> None:
        super().__init__(spec, pairs, test)
        self.sources = [(len(self.pairs), 1.0)]
        self._specs = [spec] * len(self.pairs)
        for source in extra:
            self.sources.append((len(source.pairs), source.weight))
            self.pairs += source.pairs
            self._specs += [source.spec] * len(source.pairs)
        self.augment = augment
        self.seed = seed
        channels = self.test.image_channels
        self.transform = TrainTransform(augment, spec.ignore_index, channels)

    @classmethod
    def from_config(cls, config: Config) -> TrainDataset:
        """The training sets of a run."""
        first, *extra = training_sources(config.data)
        augment, seed = config.augment, config.train.seed
        return cls(first.spec, first.pairs, augment, seed, config.preprocessing, extra)

    def with_settings(self, augment: AugmentConfig) -> TrainDataset:
        """The same images and randomness with another train pipeline."""
        other = copy.copy(self)
        other.augment = augment
        other.transform = TrainTransform(augment, self.spec.ignore_index, self.test.image_channels)
        return other

    def __getitem__(self, key: Key) -> TrainSample:
        """The sample at one position of the stream.

        Raises:
            DataError: the image or the label cannot be used; the message names the file.
        """
        position, index = key
        rng = sample_generator(self.seed, position)
        pixels, ids = self._crop(index, rng)
        further = []
        for name, mix in MIXES.items():
            chance, count = getattr(self.augment, name), mix.crops - 1
            if chance == 0:
                continue
            if rng.random() >= chance:
                further += [-1] * count
                continue
            drawn = [draw_index(self.sources, rng) for _ in range(count)]
            crops = [self._crop(other, rng) for other in drawn]
            maps = [ids, *(labels for _, labels in crops)]
            origin = mix.compute(maps, self.spec.ignore_index, rng)
            for number, (other, labels) in enumerate(crops, start=1):
                np.copyto(pixels, other, where=origin == number)
                np.copyto(ids, labels, where=origin == number)
            further += drawn
        return {
            "image": torch.from_numpy(pixels),
            "label": torch.from_numpy(ids),
            "position": position,
            "index": index,
            "further": torch.tensor(further, dtype=torch.int64),
        }

    def _crop(
        self, index: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Normalized pixels (C, h, w) and ids (h, w) of a random crop of an image."""
        pair, spec = self.pairs[index], self._specs[index]
        if pair.label is None:
            image = read_pixels(pair.image, self.test)
            ignored = np.full(image.shape[:2], self.spec.ignore_index, np.uint8)
            plan = self.transform.plan(ignored, rng)
            return self.transform.finish(*self.transform.render(image, plan, rng))
        label = pair.label
        labels, lookup = self._checked(read_label(label), label, spec.rule_for(label))
        plan = self.transform.plan(labels, rng, lookup)
        image = load_image(pair, labels, self.test, self.reduction(pair, labels, plan))
        return self.transform.finish(*self.transform.render(image, plan, rng))

    def _checked(
        self, raw: NDArray[np.uint8], label: Path, rule: LabelRule
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """The label map that a crop is planned on, and the lookup (256,) of its ids, if any.

        The whole map is checked in any case.  Where the crop comes first, ids stay as stored,
        and the lookup is applied to the crop alone.
        """
        if self.augment.crop_first and self.augment.rare_class_crops == 0:
            rule.check(raw, source=label)
            return raw, rule.table
        return rule.apply(raw, source=label), None

    def reduction(self, pair: Pair, labels: NDArray[np.uint8], plan: Plan) -> Reduction:
        """The largest fraction for decoding after which the image still shrinks.

        It is 1 unless `augment.reduced_decode` is set and the file is a JPEG, by its first bytes,
        of 8-bit RGB images.
        """
        plain = self.augment.reduced_decode and self.test.image_channels is None
        if not plain or not is_jpeg(pair.image):
            return 1
        steps: tuple[Reduction, ...] = (8, 4, 2)
        for step in steps:
            if labels.shape[0] >= step * plan.size[0] and labels.shape[1] >= step * plan.size[1]:
                return step
        return 1


class GrowingCrops(Dataset[TrainSample]):
    """Training samples whose crops grow over the run (`augment.progressive`).

    The position decides the size, so a resumed run continues exactly.

    Args:
        dataset: samples of one size.
        config: config of the run.
        images_per_iteration: number of samples of all processes per optimizer step.
    """

    def __init__(self, dataset: TrainDataset, config: Config, images_per_iteration: int) -> None:
        self.images_per_iteration = images_per_iteration
        self.iterations = config.schedule.max_iters
        self.parts = [dataset.with_settings(stage) for stage in config.augment.stages]

    def __getitem__(self, key: Key) -> TrainSample:
        """The sample at one position of the stream; see :class:`TrainDataset`."""
        iteration = key[0] // self.images_per_iteration
        part = iteration * len(self.parts) // self.iterations
        return self.parts[min(part, len(self.parts) - 1)][key]


class EvalDataset(_PairDataset[EvalSample]):
    """Whole images with their labels, in the order of the pairs."""

    @classmethod
    def from_config(cls, config: Config, split: str | None = None) -> EvalDataset:
        """The evaluation split of a run, or another one."""
        spec = resolve_spec(config.data)
        pairs = find_pairs(spec, config.data.root, split or config.data.eval_split)
        return cls(spec, pairs, config.preprocessing)

    def __getitem__(self, index: int) -> EvalSample:
        """Image and label at their own size.

        Raises:
            DataError: the image or the label cannot be used; the message names the file.
        """
        pair = self.pairs[index]
        labels = load_label(self.spec, pair)
        return {
            "image": load_image(pair, labels, self.test),
            "channels": self.test.image_channels,
            "label": labels,
            "stem": pair.stem,
            "image_path": str(pair.image),
            "label_path": str(pair.label),
            "index": index,
        }


def initialize_worker(worker: int) -> None:
    """Prepare a loader process: one thread, ignores signals, ends with its parent.

    There is one worker per core already.  The process that trains answers signals by writing a
    checkpoint, for which its loaders must go on.  Only a SIGTERM that it sends itself ends them:
    it does so when it exits after an error.
    """
    ignore_signals()
    end_when_parent_terminates()
    end_with_parent()
    cv2.setNumThreads(0)
