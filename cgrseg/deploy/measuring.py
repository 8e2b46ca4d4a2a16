"""How good a quantised file is: beside the float32 network, on the way that prediction goes.

Both are asked through the interface of exported files, at the same size, so that photos are
fitted and padded alike and the difference is the quantisation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.config import Config
from cgrseg.config.schema import TestConfig
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.image_files import read_image
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.deploy.verify import normalised
from cgrseg.errors import CGRSegError, ConfigError
from cgrseg.evaluation import evaluate_model
from cgrseg.evaluation.loop import EvalItems
from cgrseg.inference.exported import Description
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.segmenting import segment_batch
from cgrseg.models import CGRSeg
from cgrseg.progress import shown_progress


@dataclass(frozen=True)
class LabelledSplit:
    """Images with labels that mIoU is measured on.

    Attributes:
        dataset: the split.
        classes: names in id order.
        ignore_index: label value that is not counted.
        images: how many of them count, from the first on.
        what: which, in words.
    """

    dataset: EvalItems
    classes: tuple[str, ...]
    ignore_index: int
    images: int
    what: str


def one_look(test: TestConfig) -> TestConfig:
    """The settings with one plain look at the whole photo, which every file can do."""
    return test.model_copy(update={"ratios": [1.0], "flip": False, "mode": "whole"})


def float_backend(model: CGRSeg, description: Description) -> ExportedBackend:
    """The float32 network behind the interface of an exported file, with the file's sizes.

    Args:
        model: in eval mode.
        description: of the file.
    """

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        pixels = description.takes == "pixels"
        batch = normalised(array) if pixels else torch.from_numpy(array)  # type: ignore[arg-type]
        with torch.inference_mode():
            found: NDArray[np.generic] = model(batch).numpy()
        return found

    about = description.model_copy(update={"batch": None, "precision": "fp32"})
    return ExportedBackend(about, run, "the float32 network")


def find_labelled(
    config: Config | None,
    lacking: str,
    split: str | None,
    limit: int | None,
    asked: bool,
) -> tuple[LabelledSplit | None, str]:
    """The split to measure on; or None and why there is none.

    Args:
        config: of the checkpoint's run; None: it has none.
        lacking: why not, in words.
        split: of the dataset; None: the one that the config evaluates.
        limit: only the first so many images.
        asked: a measurement was asked for, so that it is an error if there can be none.

    Raises:
        CGRSegError: there is none, and one was asked for.
    """
    if config is None:
        if asked:
            raise ConfigError(
                "--data-root, --split, --limit, --max-drop",
                found=f"given, but {lacking}",
                expected="a checkpoint with its config, whose dataset mIoU is measured on",
                remedy="leave them out: the share of equal labels on --calibrate decides",
            )
        return None, lacking
    try:
        spec = resolve_spec(config.data)
        wanted = split or config.data.eval_split
        pairs = find_pairs(spec, config.data.root, wanted)
        dataset = EvalDataset(spec, pairs, config.test.image_bits)
    except CGRSegError as error:
        if asked:
            raise
        return None, str(error).splitlines()[0]
    count = len(dataset) if limit is None else min(limit, len(dataset))
    what = f"{count} images of {spec.title} {wanted}"
    return LabelledSplit(dataset, spec.classes, spec.ignore_index, count, what), ""


def mean_iou(backend: ExportedBackend, labelled: LabelledSplit, test: TestConfig) -> float:
    """The mIoU 0..1 of a file, or of what stands behind the same interface."""
    with shown_progress("measuring") as progress:
        result = evaluate_model(
            backend,
            labelled.dataset,
            test,
            classes=labelled.classes,
            ignore_index=labelled.ignore_index,
            limit=labelled.images,
            progress=progress,
        )
    return float(result.scores.mean_iou)


def agreement(
    backend: ExportedBackend, reference: ExportedBackend, photos: Sequence[Path], test: TestConfig
) -> float:
    """Mean share 0..1 of the pixels of photos whose labels are the reference's."""
    shares = []
    for photo in photos:
        picture = read_image(photo, bits=test.image_bits)
        found, wanted = (
            segment_batch(one, [picture], test)[0].labels for one in (backend, reference)
        )
        shares.append(float((found == wanted).mean()))
    return float(np.mean(shares))
