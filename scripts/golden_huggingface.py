"""A parquet file of the library `datasets`, and the label maps that it reads from it.

Run in an environment of its own; tests/data/test_convert_huggingface.py converts the file and
compares with the label maps:

    pip install datasets pillow
    python scripts/golden_huggingface.py tests/golden/huggingface
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, load_dataset
from PIL import Image as Pictures

NAMES = ["unlabeled", "road", "sky"]


def encoded(pixels: np.ndarray, form: str, mode: str | None = None) -> bytes:
    """An image file; in mode P the values are indices of a palette."""
    picture = Pictures.fromarray(pixels)
    if mode == "P":
        picture.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    elif mode:
        picture = picture.convert(mode)
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


def main(folder: Path) -> None:
    """Write `data/validation-00000-of-00001.parquet` and `label_maps.json`."""
    generator = np.random.default_rng(0)
    rows = []
    for number, (form, mode) in enumerate([("JPEG", None), ("PNG", "P"), ("PNG", "I;16")]):
        image = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        mask = np.kron(generator.integers(0, 3, (3, 4), dtype=np.uint8), np.ones((4, 4), np.uint8))
        if mode == "I;16":
            mask, mode = mask.astype(np.uint16), None
        rows.append(
            {
                "image": {"bytes": encoded(image, form), "path": f"street {number}.{form.lower()}"},
                "label": {"bytes": encoded(mask, "PNG", mode), "path": None},
                "classes_on_image": np.unique(mask).tolist(),
            }
        )
    features = Features(
        {"image": Image(), "label": Image(), "classes_on_image": List(ClassLabel(names=NAMES))}
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features).to_parquet(
        str(folder / "data" / "validation-00000-of-00001.parquet")
    )
    read = load_dataset(str(folder), split="validation")
    maps = [np.array(row["label"]).tolist() for row in read]
    (folder / "label_maps.json").write_text(json.dumps(maps) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
