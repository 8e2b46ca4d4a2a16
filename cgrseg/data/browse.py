"""Contact sheet: images with their labels laid over them, in one HTML file.

The file needs no server and no network: it contains the images.  Labels are separate images over
them, so that one slider fades all of them.  With `augmented`, the sheet shows the samples of the
first training iterations, exactly as the network gets them.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cgrseg.config.schema import Config
from cgrseg.data.channels import as_picture
from cgrseg.data.color import MEAN, STD, mean_and_std
from cgrseg.data.pair_files import load_image, load_label
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError, option
from cgrseg.files import atomic_write_text
from cgrseg.html import render
from cgrseg.input_files import read_input
from cgrseg.locks import locking
from cgrseg.progress import Progress

_GENERATOR = "cgrseg data browse"
_CLEAR = 255  # palette index of transparent pixels
_HATCH = 254  # palette index of the lines over ignored pixels, where no class has it
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Card:
    """One image of the sheet.

    Attributes:
        title: name of the image.
        caption: size, position and share of ignored pixels.
        image: JPEG bytes; empty when the image cannot be shown.
        labels: PNG bytes of the same size, transparent where ignored.
        shares: class id to share of the labeled pixels, largest first.
        problem: why the image cannot be shown.
    """

    title: str
    caption: str
    image: bytes = b""
    labels: bytes = b""
    shares: dict[int, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Sheet:
    """A written contact sheet.

    Attributes:
        path: the HTML file.
        shown: number of images.
        problems: messages about images that cannot be shown; the sheet has them too.
    """

    path: Path
    shown: int
    problems: tuple[str, ...]


@locking(lambda given: Path(given["out"]).parent)
def write_sheet(
    config: Config,
    out: Path | str,
    *,
    split: str | None = None,
    count: int = 24,
    augmented: bool = False,
    class_name: str | None = None,
    width: int = 360,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Sheet:
    """Write a contact sheet.

    Args:
        config: config of the data.
        out: HTML file to write.
        split: name of the split; None: the training split.  Augmented samples are always of the
            training split.
        count: maximum number of images, spread evenly over the split, or the first ones
            of training when augmented.
        augmented: show training samples after augmentation.
        class_name: show only images in which this class occurs.
        width: width of an image in pixels; augmented samples keep their own size.
        overwrite: replace a file that is no contact sheet.
        progress: called with (done, total).

    Raises:
        ConfigError, DataError: the dataset cannot be used, or there is no such class.
        EnvironmentProblem: the file cannot be written.
    """
    target = Path(out)
    _refuse_other_files(target, overwrite)
    spec = resolve_spec(config.data)
    wanted = _class_id(spec, class_name)
    if augmented:
        split = config.data.train_split
        cards = _augmented_cards(config, spec, count if wanted is None else 50 * count)
    else:
        split = split or config.data.train_split
        cards = _plain_cards(config, spec, split, count if wanted is None else None, width)
    chosen: list[Card] = []
    for card in cards:
        if wanted is not None and wanted not in card.shares:
            continue
        chosen.append(card)
        if progress:
            progress(len(chosen), count)
        if len(chosen) == count:
            break
    if not chosen:
        raise DataError(
            f"split {split!r} of {config.data.root}",
            found=f"no image with the class {class_name!r} among those that were read",
            expected="at least one",
            remedy="`cgrseg data check` counts how often each class occurs",
        )
    what = "training samples after augmentation" if augmented else f"images of {split!r}"
    atomic_write_text(target, _page(spec, config, f"{len(chosen)} {what}", chosen))
    return Sheet(target, len(chosen), tuple(card.problem for card in chosen if card.problem))


def _refuse_other_files(target: Path, overwrite: bool) -> None:
    if overwrite or not target.exists():
        return
    if target.is_file() and _GENERATOR.encode() in read_input(target)[:2000]:
        return
    raise DataError(
        target,
        found="a file that is not a contact sheet",
        expected="a new file, or an earlier contact sheet",
        remedy=f"choose another name, or replace it with {option('--overwrite')}",
    )


def _class_id(spec: DatasetSpec, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in spec.classes:
        raise DataError(
            "--class",
            found=f"{name!r} is no class of {spec.title}",
            expected=f"one of {', '.join(spec.classes)}",
            remedy="correct the name",
        )
    return spec.classes.index(name)


def _plain_cards(
    config: Config, spec: DatasetSpec, split: str, count: int | None, width: int
) -> Iterator[Card]:
    """Images spread over a split; all of them in random order when `count` is None."""
    pairs = find_pairs(spec, config.data.root, split)
    number = min(len(pairs), count or len(pairs))
    test = config.preprocessing
    order = np.linspace(0, len(pairs) - 1, number).round().astype(int)
    if count is None:
        # Far apart first, so that the images of a class are not all of one scene.
        order = np.random.default_rng(0).permutation(order)
    for index in order:
        pair = pairs[int(index)]
        try:
            labels = load_label(spec, pair)
            image = as_picture(load_image(pair, labels, test), test.image_channels)
        except DataError as error:
            yield Card(pair.stem, "", problem=str(error))
            continue
        caption = f"{image.shape[1]}x{image.shape[0]} pixels"
        scale = min(1.0, width / image.shape[1])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small_labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        yield _card(spec, pair.stem, caption, small, small_labels, labels)


def _augmented_cards(config: Config, spec: DatasetSpec, count: int) -> Iterator[Card]:
    """The first samples of the training stream of one process."""
    from cgrseg.data.dataset import GrowingCrops, TrainDataset, with_measurements
    from cgrseg.data.sampling import StreamSampler

    config = with_measurements(config)
    channels = config.preprocessing.image_channels
    mean, std = (MEAN, STD) if channels is None else mean_and_std(channels)
    dataset = TrainDataset.from_config(config)
    stream = StreamSampler(dataset.sources, config.train.seed, config.train.images_per_batch)
    per_iteration = config.train.images_per_batch * config.train.accumulate
    samples = GrowingCrops(dataset, config, per_iteration)
    for position, index in itertools.islice(stream, count):
        stem = dataset.pairs[index].stem
        try:
            sample = samples[position, index]
        except DataError as error:
            yield Card(stem, f"sample {position}", problem=str(error))
            continue
        pixels = sample["image"].numpy().transpose(1, 2, 0) * std + mean
        if channels is None:
            image = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
        else:
            image = as_picture(pixels, channels)
        labels = sample["label"].numpy().astype(np.uint8)
        iteration = position // per_iteration + 1
        caption = f"sample {position}, iteration {iteration}"
        yield _card(spec, stem, caption, image, labels, labels)


def _card(
    spec: DatasetSpec,
    title: str,
    caption: str,
    image: np.ndarray,
    labels: np.ndarray,
    full_labels: np.ndarray,
) -> Card:
    encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )[1]
    counts = np.bincount(full_labels.ravel(), minlength=256)
    ignored = int(counts[spec.ignore_index])
    counts = counts[: spec.num_classes]
    labeled = max(int(counts.sum()), 1)
    shares = {
        int(k): float(counts[k] / labeled) for k in np.argsort(-counts, kind="stable") if counts[k]
    }
    if ignored:
        caption += f", {ignored / full_labels.size:.1%} ignored"
    return Card(title, caption, encoded.tobytes(), labels_png(spec, labels), shares)


def labels_png(spec: DatasetSpec, labels: np.ndarray) -> bytes:
    """A PNG of the classes' colors; ignored pixels are transparent with thin lines.

    Args:
        spec: the dataset.
        labels: (H, W) uint8 training ids.
    """
    indices = labels.copy()
    ignored = labels == spec.ignore_index
    indices[ignored] = _CLEAR
    if spec.num_classes <= _HATCH:
        rows, columns = np.indices(labels.shape)
        indices[ignored & ((rows + columns) % 8 == 0)] = _HATCH
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: spec.num_classes] = np.asarray(spec.palette, dtype=np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(colors.tobytes())
    stream = io.BytesIO()
    alpha = bytes([255] * _CLEAR + [0])
    picture.save(stream, format="PNG", transparency=alpha, optimize=True)
    return stream.getvalue()


def _page(spec: DatasetSpec, config: Config, what: str, cards: Sequence[Card]) -> str:
    counts = {k: sum(k in card.shares for card in cards) for k in range(spec.num_classes)}
    present = sorted((k for k in counts if counts[k]), key=lambda k: (-counts[k], k))
    return render(
        "contact_sheet.html",
        generator=_GENERATOR,
        title=f"{spec.title}: {what}",
        root=config.data.root,
        classes=spec.classes,
        palette=spec.palette,
        counts=[(k, counts[k]) for k in present],
        cards=cards,
    )
