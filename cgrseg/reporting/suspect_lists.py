"""Suspect regions as rectangles that CVAT and Label Studio import, in the order of the ranking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from cgrseg.evaluation.ranking import RankedLabel
from cgrseg.files import atomic_write_text

CVAT, LABEL_STUDIO = "cvat_suspects.xml", "label_studio_suspects.json"

SUSPECT = "suspect"
"""Name of the label in both files."""


def write_suspect_lists(folder: Path, ranking: Sequence[RankedLabel], images: Path) -> None:
    """Write both files; images without suspect regions are left out.

    The files are CVAT 1.1 (for images), and tasks of Label Studio with predictions;
    docs/data_tools.md says how to import them.

    Args:
        folder: gets `cvat_suspects.xml` and `label_studio_suspects.json`.
        ranking: the images, the most suspicious first.
        images: folder above all images, which the names in the files are relative to: that of
            CVAT's task and of Label Studio's `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`.

    Raises:
        EnvironmentProblem: a file cannot be written.
    """
    suspects = [one for one in ranking if one.regions]
    names = [
        one.pair.image.absolute().relative_to(images.absolute()).as_posix() for one in suspects
    ]
    elements = [
        _cvat_image(number, name, one)
        for number, (name, one) in enumerate(zip(names, suspects, strict=True))
    ]
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    atomic_write_text(folder / CVAT, f"{head}{''.join(elements)}</annotations>\n")
    tasks = [_task(name, one) for name, one in zip(names, suspects, strict=True)]
    text = json.dumps(tasks, indent=1, ensure_ascii=False)
    atomic_write_text(folder / LABEL_STUDIO, text + "\n")


def _cvat_image(number: int, name: str, ranked: RankedLabel) -> str:
    height, width = ranked.size
    boxes = []
    for region in ranked.regions:
        left, top, columns, rows = region.box
        boxes.append(
            f'<box label="{SUSPECT}" source="auto" occluded="0" xtl="{left}" ytl="{top}" '
            f'xbr="{left + columns}" ybr="{top + rows}" z_order="0"></box>\n'
        )
    head = f'<image id="{number}" name={quoteattr(name)} width="{width}" height="{height}">\n'
    return f"{head}{''.join(boxes)}</image>\n"


def _task(name: str, ranked: RankedLabel) -> dict[str, Any]:
    """A task whose prediction scores the suspicion; Label Studio can sort by it."""
    height, width = ranked.size
    results = []
    for number, region in enumerate(ranked.regions, start=1):
        left, top, columns, rows = region.box
        percent = {
            "x": 100 * left / width,
            "y": 100 * top / height,
            "width": 100 * columns / width,
            "height": 100 * rows / height,
        }
        results.append(
            {
                "id": str(number),
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**percent, "rotation": 0, "rectanglelabels": [SUSPECT]},
                "score": round(region.suspicion, 4),
            }
        )
    return {
        "data": {"image": f"/data/local-files/?d={quote(name)}"},
        "predictions": [
            {
                "model_version": "cgrseg data rank",
                "score": round(ranked.suspicion, 6),
                "result": results,
            }
        ],
    }
