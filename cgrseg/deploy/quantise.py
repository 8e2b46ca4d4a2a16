"""INT8 exports: calibrated on the user's images, measured before they are kept.

Convolutions become 8-bit.  What is known to suffer stays in float32 (the classifier with its
class centres, attention's products and softmax); if that costs more mIoU than allowed, more
of the head and then of the backbone is kept back, until it does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrseg.config import Config
from cgrseg.config.settings import build, merge
from cgrseg.deploy.calibration import (
    CalibrationInputs,
    calibration_photos,
    commonest_size,
    evenly,
)
from cgrseg.deploy.export import (
    ExportResult,
    checked_sizes,
    describe_export,
    target_path,
    with_test_settings,
)
from cgrseg.deploy.graph import ExportForm
from cgrseg.deploy.int8 import ATTENTION, CLASSIFIER, quantise_onnx, quantise_openvino
from cgrseg.deploy.measuring import agreement, find_labelled, float_backend, mean_iou, one_look
from cgrseg.deploy.staging import parts_of, refuse_existing, staged
from cgrseg.deploy.writers import onnx_model, openvino_model, write_onnx_model, write_openvino
from cgrseg.errors import CGRSegError, ConfigError, WeightsError
from cgrseg.inference.exported import InputKind, OutputKind, Size
from cgrseg.inference.exported.description import Kind
from cgrseg.inference.exported_backend import open_exported
from cgrseg.inference.predictor import stored_test_settings
from cgrseg.locks import locking
from cgrseg.models import load_model, read_checkpoint
from cgrseg.progress import shown_progress

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

# Photos to calibrate with, unless told otherwise.
_IMAGES = 128
# Points of mIoU, unless told otherwise.
_MAX_DROP = 1.0


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


@locking(lambda given: target_path(given["checkpoint"], given["kind"], given["out"]).parent)
def export_int8(
    checkpoint: str | Path,
    kind: Kind,
    out: str | Path | None = None,
    *,
    sizes: Sequence[Size] | None = None,
    calibrate: Sequence[str] | None = None,
    images: int | None = None,
    data_root: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
    opset: int | None = None,
    batch: int | None = None,
    takes: InputKind = "normalised",
    gives: OutputKind = "logits",
    settings: Mapping[str, Any] | None = None,
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
        images: most of them that are used, evenly spread; None: 128.
        data_root: folder of the dataset that mIoU is measured on; None: the checkpoint's.
            If this, `split`, `limit` or `max_drop` is given, it is an error if there are no
            labels to measure on.
        split: of it; None: the one that the checkpoint's config evaluates.
        limit: only the first so many images of it.
        max_drop: of mIoU, in points; None: 1.
        opset: None: quantised files have the operators of 18.
        batch: images at once; None: any number.
        takes: as for :func:`cgrseg.deploy.export`.
        gives: "logits".
        settings: `test.*` and `data.*` by dotted name, laid over the checkpoint's config.
        overwrite: replace a file of that name.
        tell: gets a line per step.

    Raises:
        ConfigError: settings that do not fit, or a file that is there already.
        DataError: images that cannot be used.
        EnvironmentProblem: a package is missing, or the disk is full.
        WeightsError: a checkpoint that cannot be used, or too large a drop.
    """
    began = time.perf_counter()
    _refuse(kind, sizes, gives, opset)
    checked_sizes(kind, sizes)
    target = target_path(checkpoint, kind, out, mark="-int8")
    refuse_existing(target, overwrite)
    model = load_model(checkpoint, verbose=False).cpu().eval()
    description = describe_export(model, checkpoint, kind, None, batch, takes, gives)
    description = with_test_settings(description, settings or {})
    stored = stored_test_settings(description.test, checkpoint)
    test = one_look(stored)
    config, lacking = _config_of(checkpoint, data_root, settings or {})
    most = images if images is not None else _IMAGES
    photos = calibration_photos(calibrate, config, lacking, most)
    asked = any(given is not None for given in (data_root, split, limit, max_drop))
    labelled, unmeasured = find_labelled(config, lacking, split, limit, asked)
    size = sizes[0] if sizes is not None else commonest_size(photos, test)
    description = description.model_copy(update={"precision": "int8", "sizes": [size]})
    inputs = CalibrationInputs(photos, test, description, size)
    reference = float_backend(model, description)
    before: float | None = None
    after: float | None = None
    what = ""
    if labelled is not None:
        what = labelled.what + ("" if test == stored else ", one plain look at each")
        tell(f"measuring the float32 network on {what}")
        before = mean_iou(reference, labelled, test)
    allowed = max_drop if max_drop is not None else _MAX_DROP
    with staged(target, overwrite) as draft:
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
            equal = agreement(backend, reference, evenly(photos, _COMPARED), test)
            told = f"labels equal on {100 * equal:.2f} %"
            good = equal >= _LEAST_AGREEMENT
            if labelled is not None and before is not None:
                after = mean_iou(backend, labelled, test)
                told += f", mIoU {100 * before:.2f} before, {100 * after:.2f} after"
                good = 100 * (before - after) <= allowed
            tell(f"  {told}")
            if good:
                break
        else:
            raise WeightsError(
                f"INT8 export of {description.source}",
                found=told,
                expected=f"a drop of at most {allowed:g} points"
                if labelled is not None
                else f"labels equal on at least {100 * _LEAST_AGREEMENT:g} %",
                remedy="calibrate with more images that look like those to come (--calibrate, "
                "--calibration-images), or allow more (--max-drop); no file was left",
            )
        megabytes = sum(part.stat().st_size for part in parts_of(draft)) / 1e6
    result = ExportResult(target, megabytes, [], time.perf_counter() - began)
    return Quantisation(
        result=result,
        images=len(inputs),
        kept_back=kept,
        agreement=equal,
        before=before,
        after=after,
        measured_on=what,
        unmeasured=unmeasured,
    )


def _refuse(kind: Kind, sizes: Sequence[Size] | None, gives: OutputKind, opset: int | None) -> None:
    problem = ""
    if kind not in ("onnx", "openvino"):
        problem = f"--format {kind}"
    elif gives != "logits":
        problem = "--output labels"
    elif sizes is not None and len(sizes) != 1:
        problem = f"{len(sizes)} sizes"
    elif opset is not None:
        problem = f"--opset {opset}"
    if problem:
        raise ConfigError(
            "--int8",
            found=problem,
            expected="--format onnx or openvino, --output logits, one --size, no --opset",
            remedy="change these, or export without --int8",
        )


def _config_of(
    checkpoint: str | Path, data_root: str | None, settings: Mapping[str, Any]
) -> tuple[Config | None, str]:
    """The config in a checkpoint; or None and why not."""
    stored: Any = read_checkpoint(checkpoint).meta.get("config")
    if not isinstance(stored, dict):
        return None, "the checkpoint does not say which dataset it was trained on"
    try:
        config = Config(**stored)
    except (CGRSegError, ValueError) as error:
        return None, f"the config in the checkpoint cannot be used ({str(error).splitlines()[0]})"
    root = {} if data_root is None else {"data.root": data_root}
    return build(merge(config.model_dump(), {**root, **settings})), ""
