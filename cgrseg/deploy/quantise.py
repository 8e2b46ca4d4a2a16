"""INT8 exports: calibrated on the user's images, measured before they are kept.

Convolutions become 8-bit.  What is known to suffer stays in float32 (the classifier with its
class centres, attention's products and softmax); if that costs more mIoU than allowed, more
of the head and then of the backbone is kept back, until it does not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.config import Config
from cgrseg.config.schema import TestConfig
from cgrseg.data.catalogue import find_pairs, resolve_spec
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.image_io import read_image
from cgrseg.data.spec import Pair
from cgrseg.data.test_transform import TestTransform
from cgrseg.deploy.export import ExportResult, checked_sizes, describe_export, target_path
from cgrseg.deploy.graph import ExportForm
from cgrseg.deploy.int8 import ATTENTION, CLASSIFIER, quantise_onnx, quantise_openvino
from cgrseg.deploy.staging import parts_of, refuse_existing, staged
from cgrseg.deploy.verify import compare
from cgrseg.deploy.writers import onnx_model, openvino_model, write_onnx_model, write_openvino
from cgrseg.errors import CGRSegError, ConfigError, WeightsError, explain
from cgrseg.evaluation import evaluate_model
from cgrseg.evaluation.progress import shown_progress
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.exported import ExportedBackend, InputKind, OutputKind, Size, open_exported
from cgrseg.inference.exported.description import Description, Kind
from cgrseg.inference.exported.predicting import fit
from cgrseg.inference.sources import find_images
from cgrseg.inference.views import Image, network_input, network_size
from cgrseg.models import CGRSeg, load_model, read_checkpoint

# What is kept in float32, step by step: names for people, and patterns of nodes.
_STEPS: tuple[tuple[str, str], ...] = (
    ("classifier", CLASSIFIER),
    ("attention products", ATTENTION),
    ("head", r"network\.head\..*"),
    ("stem and first stages", r"network\.backbone\.(stem|layers\.[0-3]).*"),
)
_FIRST = 2
"""Steps that are always taken: what they keep back is small and known to suffer."""

# Images on which label agreement is taken.
_COMPARED = 16
_LEAST_AGREEMENT = 0.9


@dataclass(frozen=True)
class Quantisation:
    """What became of a quantisation.

    Attributes:
        result: the file.
        images: that it was calibrated on.
        kept_back: groups of layers in float32.
        agreement: share 0..1 of pixels whose label is the float32 network's, on calibration
            images.
        before: mIoU 0..1 of the float32 network; None: not measured.
        after: of the file; likewise.
        measured_on: what mIoU was measured on, in words.
        unmeasured: why it was not; empty otherwise.
    """

    result: ExportResult
    images: int
    kept_back: tuple[str, ...]
    agreement: float
    before: float | None
    after: float | None
    measured_on: str = ""
    unmeasured: str = ""


@dataclass(frozen=True)
class _Measured:
    """A labelled split, and how good the float32 network is on it."""

    dataset: EvalDataset
    classes: tuple[str, ...]
    ignore_index: int
    limit: int | None
    what: str
    before: float


def export_int8(
    checkpoint: str | Path,
    kind: Kind,
    out: str | Path | None = None,
    *,
    sizes: Sequence[Size] | None = None,
    calibrate: Sequence[str] | None = None,
    images: int = 128,
    data_root: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    max_drop: float = 1.0,
    batch: int | None = None,
    takes: InputKind = "normalised",
    gives: OutputKind = "logits",
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Quantisation:
    """Write a checkpoint in 8 bits, measured.

    Args:
        checkpoint: a `.pth` file, a folder of `save_pretrained` or a hub id.
        kind: "onnx" or "openvino".
        out: the file; None: beside the checkpoint.
        sizes: one height and width; None: the commonest one of the calibration images.
        calibrate: images, folders and patterns; None: the training split of the checkpoint's
            dataset.
        images: most of them that are used, evenly spread.
        data_root: folder of the dataset that mIoU is measured on; None: the checkpoint's.
        split: of it; None: the one that the checkpoint's config evaluates.
        limit: only the first so many images of it.
        max_drop: of mIoU, in points.
        batch: images at once; None: any number.
        takes: as for :func:`cgrseg.deploy.export`.
        gives: "logits".
        overwrite: replace a file of that name.
        tell: gets a line per step.

    Raises:
        ConfigError: settings that do not fit, or a file that is there already.
        DataError: images that cannot be used.
        EnvironmentProblem: a package is missing, or the disk is full.
        WeightsError: a checkpoint that cannot be used, or too large a drop.
    """
    began = time.perf_counter()
    _refuse(kind, sizes, gives)
    model = load_model(checkpoint, verbose=False).cpu().eval()
    target = target_path(checkpoint, kind, out, mark="-int8")
    refuse_existing(target, overwrite)
    test = TestConfig(**(model.preprocessing or {}))
    config, lacking = _config_of(checkpoint, data_root)
    photos = _photos(calibrate, config, lacking, images)
    pictures = [read_image(photo) for photo in photos]
    size = sizes[0] if sizes is not None else _commonest(pictures, test)
    checked_sizes(kind, [size])
    description = describe_export(model, checkpoint, kind, [size], batch, takes, gives)
    description = description.model_copy(update={"precision": "int8"})
    inputs = _inputs(pictures, test, size, description)
    measured, unmeasured = _measure_before(model, config, lacking, split, limit, test, size, tell)
    with staged(target) as draft:
        tell(f"writing the float32 form for {size[0]}x{size[1]}")
        form = ExportForm(model, size, takes, gives)
        source = (
            openvino_model(form, size, description)
            if kind == "openvino"
            else onnx_model(form, size, description, 18)
        )
        for steps in range(_FIRST, len(_STEPS) + 1):
            kept = tuple(name for name, _ in _STEPS[:steps])
            patterns = [pattern for _, pattern in _STEPS[:steps]]
            tell(f"calibrating; kept in float32: {', '.join(kept)}")
            with shown_progress("calibrating") as progress:
                if kind == "openvino":
                    quantised = quantise_openvino(source.clone(), inputs, patterns, progress)
                    write_openvino(quantised, description, draft)
                else:
                    quantised = quantise_onnx(source, inputs, patterns, progress)
                    write_onnx_model(quantised, description, draft)
            backend = open_exported(draft)
            agreement = _agreement(backend, model, pictures, test, size)
            after = _miou(backend, measured, test) if measured is not None else None
            told = f"labels equal on {100 * agreement:.2f} %"
            if measured is not None and after is not None:
                told += f", mIoU {100 * measured.before:.2f} before, {100 * after:.2f} after"
            tell(f"  {told}")
            drop = 0.0 if measured is None or after is None else 100 * (measured.before - after)
            if drop <= max_drop and (measured is not None or agreement >= _LEAST_AGREEMENT):
                break
        else:
            raise WeightsError(
                explain(
                    f"INT8 export of {description.source}",
                    found=told,
                    expected=f"a drop of at most {max_drop:g} points"
                    if measured is not None
                    else f"labels equal on at least {100 * _LEAST_AGREEMENT:g} %",
                    remedy="calibrate with more images that look like those to come (--calibrate, "
                    "--images), or allow more (--max-drop); no file was left",
                )
            )
        megabytes = sum(part.stat().st_size for part in parts_of(draft)) / 1e6
    result = ExportResult(target, megabytes, [], time.perf_counter() - began)
    return Quantisation(
        result=result,
        images=len(inputs),
        kept_back=kept,
        agreement=agreement,
        before=measured.before if measured is not None else None,
        after=after,
        measured_on=measured.what if measured is not None else "",
        unmeasured=unmeasured,
    )


def _refuse(kind: Kind, sizes: Sequence[Size] | None, gives: OutputKind) -> None:
    problem = ""
    if kind not in ("onnx", "openvino"):
        problem = f"--format {kind}"
    elif gives != "logits":
        problem = "--output labels"
    elif sizes is not None and len(sizes) != 1:
        problem = f"{len(sizes)} sizes"
    if problem:
        raise ConfigError(
            explain(
                "--int8",
                found=problem,
                expected="--format onnx or openvino, --output logits, and one --size",
                remedy="change these, or export without --int8",
            )
        )


def _config_of(checkpoint: str | Path, data_root: str | None) -> tuple[Config | None, str]:
    """The config in a checkpoint; or None and why not."""
    stored: Any = read_checkpoint(checkpoint).meta.get("config")
    if not isinstance(stored, dict):
        return None, "the checkpoint does not say which dataset it was trained on"
    try:
        config = Config(**stored)
    except (CGRSegError, ValueError) as error:
        return None, f"the config in the checkpoint cannot be used ({str(error).splitlines()[0]})"
    if data_root is not None:
        data = config.data.model_copy(update={"root": data_root})
        config = config.model_copy(update={"data": data})
    return config, ""


def _photos(
    calibrate: Sequence[str] | None, config: Config | None, lacking: str, most: int
) -> list[Path]:
    """Photos to calibrate with, evenly spread over what there is."""
    if calibrate:
        found = [image.path for image in find_images(calibrate)]
    elif config is not None:
        spec = resolve_spec(config.data)
        pairs = find_pairs(spec, config.data.root, config.data.train_split)
        found = [pair.image for pair in pairs]
    else:
        raise ConfigError(
            explain(
                "--calibrate",
                found=f"not given, and {lacking}",
                expected="images like those that the file is for",
                remedy="for example --calibrate photos/",
            )
        )
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[place] for place in places]


def _commonest(pictures: Sequence[Image], test: TestConfig) -> Size:
    return Counter(network_size(picture, test) for picture in pictures).most_common(1)[0][0]


def _inputs(
    pictures: Sequence[Image], test: TestConfig, size: Size, description: Description
) -> list[NDArray[np.generic]]:
    """What the file will get for each photo, whatever kind of input it takes."""
    taken: list[NDArray[np.generic]] = []

    def keep(array: NDArray[np.generic]) -> NDArray[np.generic]:
        taken.append(array)
        return np.zeros((len(array), 1, size[0] // 8, size[1] // 8), np.float32)

    recorder = ExportedBackend(description, keep, "calibration")
    single = test.model_copy(update={"ratios": [1.0], "flip": False, "mode": "whole"})
    for picture in pictures:
        fitted = fit(single, picture, [size])
        transform = TestTransform(fitted)
        tensor = transform.normalise(transform.resize(picture))
        recorder.logits(network_input(tensor, network_size(picture, fitted)))
    return taken


def _measure_before(
    model: CGRSeg,
    config: Config | None,
    lacking: str,
    split: str | None,
    limit: int | None,
    test: TestConfig,
    size: Size,
    tell: Callable[[str], None],
) -> tuple[_Measured | None, str]:
    """The labelled split with the float32 network's mIoU; or None and why not."""
    if config is None:
        return None, lacking
    try:
        spec = resolve_spec(config.data)
        wanted = split or config.data.eval_split
        pairs = find_pairs(spec, config.data.root, wanted)
        dataset = EvalDataset(spec, pairs)
    except CGRSegError as error:
        if split is not None:
            raise
        return None, str(error).splitlines()[0]
    larger = _too_large(pairs[:limit], test, size)
    if larger:
        return None, (
            f"{larger} of the images of {spec.title} {wanted} need a larger input than "
            f"{size[0]}x{size[1]}"
        )
    count = len(dataset) if limit is None else min(limit, len(dataset))
    what = f"{count} images of {spec.title} {wanted}"
    measured = _Measured(dataset, spec.classes, spec.ignore_index, limit, what, 0.0)
    tell(f"measuring the float32 network on {what}")
    before = _miou(TorchBackend(model), measured, test)
    return _Measured(dataset, spec.classes, spec.ignore_index, limit, what, before), ""


def _miou(backend: Backend, measured: _Measured, test: TestConfig) -> float:
    with shown_progress("measuring") as progress:
        result = evaluate_model(
            backend,
            measured.dataset,  # type: ignore[arg-type]
            test,
            classes=measured.classes,
            ignore_index=measured.ignore_index,
            limit=measured.limit,
            progress=progress,
        )
    return float(result.scores.mean_iou)


def _too_large(pairs: Sequence[Pair], test: TestConfig, size: Size) -> int:
    """How many images of a split need a larger input than the file takes."""
    from PIL import Image as Pillow

    count = 0
    for pair in pairs:
        with Pillow.open(pair.image) as picture:
            shape = (picture.height, picture.width, 3)
        height, width = network_size(np.broadcast_to(np.uint8(0), shape), test)
        count += height > size[0] or width > size[1]
    return count


def _agreement(
    backend: ExportedBackend, model: CGRSeg, pictures: Sequence[Image], test: TestConfig, size: Size
) -> float:
    """Share of pixels with the float32 network's label, on some of the calibration images."""
    single = test.model_copy(update={"ratios": [1.0], "flip": False, "mode": "whole"})
    places = np.unique(np.linspace(0, len(pictures) - 1, _COMPARED).round().astype(int))
    shares = []
    for place in places:
        fitted = fit(single, pictures[place], [size])
        tensor = TestTransform(fitted)(pictures[place]).tensor
        batch = network_input(tensor, network_size(pictures[place], fitted))
        shares.append(compare(backend, model, batch).labels)
    return float(np.mean(shares))
