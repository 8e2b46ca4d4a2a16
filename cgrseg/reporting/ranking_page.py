"""Files of a ranking of images: a page with pictures, tables, and the list of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cgrseg.addresses import Address
from cgrseg.data.channels import as_picture, read_pixels
from cgrseg.data.pair_files import load_image, load_label
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import DataError, option
from cgrseg.evaluation.ranking import Problem, RankedImage, RankedLabel
from cgrseg.evaluation.suspicion import SuspectRegion
from cgrseg.files import atomic_write_text
from cgrseg.html import percent, render
from cgrseg.inference.pixel_scores import pixel_scores
from cgrseg.inference.predictor import Predictor
from cgrseg.progress import Progress
from cgrseg.reporting.report import Picture, encode_picture
from cgrseg.reporting.report_files import write_csv
from cgrseg.reporting.suspect_lists import CVAT, LABEL_STUDIO, write_suspect_lists
from cgrseg.visual.overlay import class_shares, colorize

PAGE, TABLE, REGIONS, IMAGES = "index.html", "ranking.csv", "regions.csv", "images.txt"

_SUSPECT = (255, 0, 160)
_REGIONS_SHOWN = 6
_SUSPICION = (
    "The most suspicious first. A pixel is suspect where the network predicts another class than "
    "its label, at least as surely as it predicts that class where it is labeled. A confusion that "
    "is frequent in other images counts for less. The suspicion of an image is the sum over its "
    "suspect regions, per labeled pixel. Narrow strips along borders are not counted. Suspect "
    "regions are outlined."
)
_USEFULNESS = (
    "The most useful first. Each place goes to the image with the largest product of uncertainty "
    "(mean entropy of its pixels) and distance to the nearest image that is labeled or stands "
    "above it. The uncertainty is 100 % where all classes are equally likely, in white on the "
    "third image of the row."
)


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a ranking.

    Raises:
        DataError: names the first file that would be replaced.
    """
    for name in (PAGE, TABLE, REGIONS, IMAGES, CVAT, LABEL_STUDIO):
        if (folder / name).exists() and not overwrite:
            raise DataError(
                folder / name,
                found="it exists already",
                expected="a folder without a ranking",
                remedy=f"choose another folder with {option('--out')}, or replace it with "
                f"{option('--overwrite')}",
            )


def write_label_ranking(
    folder: Path,
    ranking: Sequence[RankedLabel],
    predictor: Predictor,
    spec: DatasetSpec,
    *,
    problems: Sequence[Problem] = (),
    count: int = 50,
    title: str,
    progress: Progress | None = None,
) -> None:
    """Write the files of :func:`~cgrseg.evaluation.ranking.rank_labels`.

    Args:
        folder: gets `index.html`, `ranking.csv`, `regions.csv`, `images.txt` and the files of
            :func:`~cgrseg.reporting.suspect_lists.write_suspect_lists`.
        ranking: the images, the most suspicious first.
        predictor: predicts the images of the page.
        spec: the dataset.
        problems: images that could not be read.
        count: maximum number of images on the page; the other files have all of them.
        title: title of the page.
        progress: called with the number of finished images of the page and of all.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """

    def card(ranked: RankedLabel) -> dict[str, Any]:
        labels = load_label(spec, ranked.pair)
        image = load_image(ranked.pair, labels, predictor.test)
        prediction = pixel_scores(predictor.backend, image, predictor.test).prediction
        regions = ranked.regions[:_REGIONS_SHOWN]
        shares = np.maximum(*(class_shares(x, spec.num_classes) for x in (labels, prediction)))
        return {
            "title": ranked.pair.stem,
            "about": f"suspicion {percent(ranked.suspicion, 2)} %",
            "pictures": [
                _outlined(
                    as_picture(image, predictor.test.image_channels), ranked.regions, "image"
                ),
                _outlined(colorize(labels, spec.palette), ranked.regions, "label"),
                _outlined(colorize(prediction, spec.palette), ranked.regions, "prediction"),
            ],
            "regions": [
                (
                    region.given,
                    region.predicted,
                    f"{region.pixels:,} pixels, suspicion {percent(region.suspicion, 0)} %",
                )
                for region in regions
            ],
            "more": len(ranked.regions) - len(regions),
            "legend": _legend(shares),
        }

    rows = [
        [place, one.pair.stem, one.pair.image, one.pair.label, one.suspicion, len(one.regions)]
        for place, one in enumerate(ranking, start=1)
    ]
    header = ["rank", "stem", "image", "label", "suspicion", "regions"]
    write_csv(folder / TABLE, header, rows)
    write_csv(
        folder / REGIONS,
        ["stem", "left", "top", "width", "height", "pixels", "suspicion", "given", "predicted"],
        [
            [
                *(one.pair.stem, *region.box, region.pixels, region.suspicion),
                *(spec.classes[region.given], spec.classes[region.predicted]),
            ]
            for one in ranking
            for region in one.regions
        ],
    )
    _write_list(folder, [one.pair.image for one in ranking])
    above = os.path.commonpath([one.pair.image.absolute().parent for one in ranking] or [folder])
    write_suspect_lists(folder, ranking, Path(above))
    cards = _cards(ranking[:count], card, progress)
    _write_page(
        folder, title, _SUSPICION, len(ranking), cards, problems, spec.classes, spec.palette
    )


def write_image_ranking(
    folder: Path,
    ranking: Sequence[RankedImage],
    predictor: Predictor,
    *,
    problems: Sequence[Problem] = (),
    count: int = 50,
    title: str,
    progress: Progress | None = None,
) -> None:
    """Write the files of :func:`~cgrseg.evaluation.ranking.rank_images`.

    Arguments and errors are those of :func:`write_label_ranking`; there are no regions.
    """

    def card(ranked: RankedImage) -> dict[str, Any]:
        image = read_pixels(ranked.image.path, predictor.test)
        scores = pixel_scores(predictor.backend, image, predictor.test)
        gray = np.repeat((scores.entropy * 255).round().astype(np.uint8)[..., None], 3, axis=2)
        return {
            "title": ranked.image.name,
            "about": f"uncertainty {percent(ranked.uncertainty)} % · distance to the labeled "
            f"images {percent(ranked.distance, 0)} % · product {percent(ranked.score)} %",
            "pictures": [
                encode_picture(as_picture(image, predictor.test.image_channels), "image"),
                encode_picture(
                    colorize(scores.prediction, predictor.palette), "prediction", exact=True
                ),
                encode_picture(gray, "uncertainty"),
            ],
            "regions": [],
            "more": 0,
            "legend": _legend(class_shares(scores.prediction, len(predictor.classes))),
        }

    rows = [
        [place, one.image.name, one.image.path, one.uncertainty, one.distance, one.score]
        for place, one in enumerate(ranking, start=1)
    ]
    for name in (REGIONS, CVAT, LABEL_STUDIO):  # of a ranking of labels that this one replaces
        (folder / name).unlink(missing_ok=True)
    header = ["rank", "name", "image", "uncertainty", "distance", "product"]
    write_csv(folder / TABLE, header, rows)
    _write_list(folder, [one.image.path for one in ranking])
    cards = _cards(ranking[:count], card, progress)
    classes, palette = predictor.classes, predictor.palette
    _write_page(folder, title, _USEFULNESS, len(ranking), cards, problems, classes, palette)


def _cards(
    ranking: Sequence[Any],
    card: Callable[[Any], dict[str, Any]],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    cards = []
    for ranked in ranking:
        cards.append(card(ranked))
        if progress is not None:
            progress(len(cards), len(ranking))
    return cards


def _write_list(folder: Path, images: Sequence[Path | Address]) -> None:
    text = "".join(
        f"{image.absolute() if isinstance(image, Path) else image}\n" for image in images
    )
    atomic_write_text(folder / IMAGES, text)


def _write_page(
    folder: Path,
    title: str,
    meaning: str,
    total: int,
    cards: Sequence[dict[str, Any]],
    problems: Sequence[Problem],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    page = render(
        "ranking.html",
        title=title,
        subtitle=f"{total:,} images, of which the first {len(cards)} are shown"
        if len(cards) < total
        else f"{total:,} images",
        meaning=meaning,
        problems=[str(problem.error) for problem in problems],
        cards=cards,
        classes=classes,
        palette=palette,
    )
    atomic_write_text(folder / PAGE, page)


def _outlined(pixels: NDArray[np.uint8], regions: Sequence[SuspectRegion], caption: str) -> Picture:
    """A picture with the borders of regions, white beside magenta so that any colors show them."""
    picture = np.ascontiguousarray(pixels)
    thickness = max(1, round(min(picture.shape[:2]) / 240))
    for color, width in (((255, 255, 255), 3 * thickness), (_SUSPECT, thickness)):
        for region in regions:
            cv2.polylines(picture, list(region.outlines), True, color, width)
    return encode_picture(picture, caption, exact=caption != "image")


def _legend(shares: NDArray[np.float64]) -> list[int]:
    """Ids of the classes that cover at least half a percent, the largest first."""
    return [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] >= 0.005][:24]
