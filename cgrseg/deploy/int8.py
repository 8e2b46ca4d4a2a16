"""INT8 exports: calibrated on the user's images, and measured before they are kept.

Convolutions become 8-bit.  Layers that lose much by it stay in float32: the classifier with its
class centers, and the products and softmax of attention.  If the mIoU still drops more than
accepted, more of the head and then of the backbone stays in float32 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgrseg.config import Config
from cgrseg.config.settings import build, merge, stored_test_settings
from cgrseg.deploy.calibration import (
    CalibrationInputs,
    find_calibration_images,
    find_labeled_split,
    float_backend,
    label_agreement,
    mean_iou,
    most_common_size,
    sampled_evenly,
)
from cgrseg.errors import CGRSegError, ConfigError, WeightsError
from cgrseg.formats import load_format
from cgrseg.formats.base import ExportFormat, ExportJob, QuantizableFormat
from cgrseg.formats.description import Size
from cgrseg.formats.names import format_names
from cgrseg.inference.exported_backend import open_exported
from cgrseg.models import CGRSeg, read_checkpoint
from cgrseg.progress import shown_progress

# Groups of layers that stay in float32, step by step: name, and pattern of node names.
_STEPS: tuple[tuple[str, str], ...] = (
    ("classifier", r"network\.head\.guide.*"),
    ("attention products", r".*/(MatMul|Softmax)_\d+"),
    ("head", r"network\.head\..*"),
    ("stem and first stages", r"network\.backbone\.(stem|layers\.[0-3]).*"),
)
_FIRST = 2
"""Number of steps that are always taken: these groups are small and lose much in 8 bits."""

# Number of images for label agreement.
_COMPARED = 16
_LEAST_AGREEMENT = 0.9

_DEFAULT_IMAGES = 128
_DEFAULT_MAX_DROP = 1.0  # points of mIoU


@dataclass(frozen=True)
class Int8Options:
    """How an 8-bit export is calibrated and measured.

    Attributes:
        calibrate: images, folders and patterns; None: the training split of the checkpoint's
            dataset.
        images: maximum number of calibration images, sampled evenly; None: 128.
        data_root: dataset root for measuring mIoU; None: the checkpoint's.  If this, `split`,
            `limit` or `max_drop` is given, it is an error if there are no labels to measure on.
        split: name of the split; None: the one that the checkpoint's config evaluates.
        limit: maximum number of images of the split.
        max_drop: largest accepted mIoU drop, in points; None: 1.
    """

    calibrate: Sequence[str] | None = None
    images: int | None = None
    data_root: str | None = None
    split: str | None = None
    limit: int | None = None
    max_drop: float | None = None


@dataclass(frozen=True)
class Int8Report:
    """Measurements of an 8-bit export.

    Attributes:
        images: number of calibration images.
        kept_back: groups of layers that stay in float32.
        agreement: share 0..1 of pixels with the float32 network's label, on calibration images.
        before: mIoU 0..1 of the float32 network; None: not measured.
        after: mIoU 0..1 of the file; None: not measured.
        measured_on: what mIoU was measured on, in words.
        unmeasured: why mIoU was not measured; empty if it was.
    """

    images: int
    kept_back: tuple[str, ...]
    agreement: float
    before: float | None
    after: float | None
    measured_on: str = ""
    unmeasured: str = ""


def quantizable(
    export_format: ExportFormat, sizes: Sequence[Size] | None, gives: str, opset: int | None
) -> QuantizableFormat:
    """The format, if it has 8 bits with these settings.

    Raises:
        ConfigError: it has not.
    """
    problem = ""
    if "int8" not in export_format.stored:
        problem = f"--format {export_format.name}"
    elif gives != "logits":
        problem = f"--output {gives}"
    elif sizes is not None and len(sizes) != 1:
        problem = f"{len(sizes)} sizes"
    elif opset is not None:
        problem = f"--opset {opset}"
    else:
        assert isinstance(export_format, QuantizableFormat)
        return export_format
    able = [name for name in format_names() if "int8" in load_format(name).stored]
    raise ConfigError(
        "--int8",
        found=problem,
        expected=f"--format {' or '.join(able)}, --output logits, one --size, no --opset",
        remedy="change these, or export without --int8",
    )


def write_int8(
    export_format: QuantizableFormat,
    checkpoint: str | Path | CGRSeg,
    job: ExportJob,
    options: Int8Options,
    settings: Mapping[str, Any],
    draft: Path,
    tell: Callable[[str], None],
) -> Int8Report:
    """Calibrate, write and measure, keeping more layers in float32 until the drop is accepted.

    Args:
        export_format: format of the file.
        checkpoint: what the network was loaded from.
        job: the float32 export; without a size, the file gets the most common one of the
            calibration images.
        options: for calibration and measurement.
        settings: `test.*` and `data.*` by dotted name, laid over the checkpoint's config.
        draft: path to write to.
        tell: called with a line of text per step.

    Raises:
        DataError: images that cannot be used.
        WeightsError: too large a drop.
    """
    stored = stored_test_settings(job.description.test, job.description.source)
    # One view of the whole image, which every file can do.
    test = stored.model_copy(update={"ratios": [1.0], "flip": False, "mode": "whole"})
    config, missing = _config_of(checkpoint, options.data_root, settings)
    most = options.images if options.images is not None else _DEFAULT_IMAGES
    channels = test.image_channels
    paths = find_calibration_images(options.calibrate, config, missing, most, channels)
    measuring = (options.data_root, options.split, options.limit, options.max_drop)
    required = any(given is not None for given in measuring)
    labeled, unmeasured = find_labeled_split(
        config, missing, options.split, options.limit, required, test
    )
    size = job.size or most_common_size(paths, test)
    update = {"precision": "int8", "sizes": [size]}
    job = replace(job, description=job.description.model_copy(update=update))
    reference = float_backend(job.model, job.description)
    before: float | None = None
    after: float | None = None
    title = ""
    if labeled is not None:
        title = labeled.title + ("" if test == stored else ", one view of each whole image")
        tell(f"measuring the float32 network on {title}")
        before = mean_iou(reference, labeled, test)
    allowed = options.max_drop if options.max_drop is not None else _DEFAULT_MAX_DROP
    tell(f"writing the float32 graph for {size[0]}x{size[1]}")
    source = export_format.build(job)
    for steps in range(_FIRST, len(_STEPS) + 1):
        kept = tuple(name for name, _ in _STEPS[:steps])
        patterns = [pattern for _, pattern in _STEPS[:steps]]
        tell(f"calibrating; kept in float32: {', '.join(kept)}")
        with shown_progress("calibrating") as progress:
            inputs = CalibrationInputs(paths, test, job.description, progress)
            made = export_format.quantize(source, inputs, patterns)
        export_format.save(made, job.description, draft)
        backend = open_exported(draft)
        equal = label_agreement(backend, reference, sampled_evenly(paths, _COMPARED), test)
        found = f"labels equal on {100 * equal:.2f} %"
        good = equal >= _LEAST_AGREEMENT
        if labeled is not None and before is not None:
            after = mean_iou(backend, labeled, test)
            found += f", mIoU {100 * before:.2f} before, {100 * after:.2f} after"
            good = 100 * (before - after) <= allowed
        tell(f"  {found}")
        if good:
            described = job.description.model_copy(update={"agreement": equal})
            export_format.save(made, described, draft)
            return Int8Report(len(paths), kept, equal, before, after, title, unmeasured)
    raise WeightsError(
        f"INT8 export of {job.description.source}",
        found=found,
        expected=f"a drop of at most {allowed:g} points"
        if labeled is not None
        else f"labels equal on at least {100 * _LEAST_AGREEMENT:g} %",
        remedy="calibrate with more images that look like those to come (--calibrate, "
        "--calibration-images), or allow more (--max-drop); no file was left",
    )


def _config_of(
    checkpoint: str | Path | CGRSeg, data_root: str | None, settings: Mapping[str, Any]
) -> tuple[Config | None, str]:
    """The config in a checkpoint; or None, and why there is none."""
    if isinstance(checkpoint, CGRSeg):
        return None, "a network in memory does not say which dataset it was trained on"
    stored: Any = read_checkpoint(checkpoint).meta.get("config")
    if not isinstance(stored, dict):
        return None, "the checkpoint does not say which dataset it was trained on"
    try:
        config = Config(**stored)
    except (CGRSegError, ValueError) as error:
        return None, f"the config in the checkpoint cannot be used ({str(error).splitlines()[0]})"
    root = {} if data_root is None else {"data.root": data_root}
    return build(merge(config.model_dump(), {**root, **settings})), ""
