"""Which images a report shows, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cgrseg.reporting.page import escape, percent, picture
from cgrseg.reporting.records import ImageRecord, Sample
from cgrseg.reporting.tables import swatch
from cgrseg.visual.gallery import IGNORED_COLOUR, RIGHT_COLOUR, WRONG_COLOUR, error_map
from cgrseg.visual.overlay import class_shares
from cgrseg.visual.palette import colorize

Group = Literal["worst", "typical", "best"]

HEADINGS: dict[Group, str] = {
    "worst": "Worst images",
    "typical": "In the middle",
    "best": "Best images",
}


def choose_images(
    records: Sequence[ImageRecord], worst: int = 4, typical: int = 2, best: int = 4
) -> list[tuple[int, Group]]:
    """Positions of the images to show, by their mIoU; none is chosen twice.

    Args:
        records: one per image; those without a score are never chosen.
        worst: how many from the low end, the lowest first.
        typical: how many around the median.
        best: how many from the high end, the highest first.
    """
    scored = [(record.get("mIoU"), k) for k, record in enumerate(records)]
    ranked = [k for score, k in sorted((s, k) for s, k in scored if s is not None)]
    low = ranked[:worst]
    high = ranked[max(len(low), len(ranked) - best) :][::-1]
    middle = ranked[len(low) : len(ranked) - len(high)]
    first = max(0, (len(middle) - typical) // 2)
    groups: list[tuple[int, Group]] = [(k, "worst") for k in low]
    groups += [(k, "typical") for k in middle[first : first + typical]]
    return groups + [(k, "best") for k in high]


def sample_cards(
    samples: Sequence[Sample],
    classes: Sequence[str],
    palette: npt.NDArray[np.uint8],
    ignore_index: int,
) -> str:
    """Image, label, prediction and error map of each sample, under the headings of its group."""
    parts = []
    for group, heading in HEADINGS.items():
        members = [sample for sample in samples if sample.group == group]
        if members:
            parts.append(f"<h3>{heading}</h3>")
            parts += [_card(sample, classes, palette, ignore_index) for sample in members]
    if any(sample.label is not None for sample in samples):
        key = "".join(
            swatch(colour, name)
            for colour, name in (
                (RIGHT_COLOUR, "right"),
                (WRONG_COLOUR, "wrong"),
                (IGNORED_COLOUR, "not judged"),
            )
        )
        parts.insert(0, f'<p class="key-line">Colours of the error maps: {key}</p>')
    return "".join(parts)


def _card(
    sample: Sample, classes: Sequence[str], palette: npt.NDArray[np.uint8], ignore_index: int
) -> str:
    height, width = sample.prediction.shape
    pictures = [picture(sample.image, "image")]
    shares = class_shares(sample.prediction, len(classes))
    if sample.label is not None:
        pictures.append(picture(colorize(sample.label, palette), "label", photo=False))
        shares = np.maximum(shares, class_shares(sample.label, len(classes)))
    pictures.append(picture(colorize(sample.prediction, palette), "prediction", photo=False))
    if sample.label is not None:
        errors = error_map(
            sample.label, sample.prediction, ignore_index=ignore_index, image=sample.image
        )
        pictures.append(picture(errors, "error map"))
    scores = " · ".join(f"{escape(name)} {percent(value)}" for name, value in sample.scores.items())
    # What covers less than half a percent is hard to see; it would only lengthen the key.
    shown = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] >= 0.005]
    key = "".join(swatch(palette[k], classes[k]) for k in shown[:24])
    return (
        f'<article class="sample"><h4>{escape(sample.stem)} '
        f"<small>{scores}{' · ' if scores else ''}{width} × {height}</small></h4>"
        f'<div class="pictures">{"".join(pictures)}</div><p class="key-line">{key}</p></article>'
    )
