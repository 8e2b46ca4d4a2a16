"""A raster of any size with four bands of 16 bits, and its label raster.

Regions with curved borders are filled with squares of one class from the images of a dataset with
labels, such as CamVid.  Red, green and blue are scaled to 16 bits; the fourth band is twice green
less red.  Blocks are written one after the other.

    python benchmarks/large_raster.py data/camvid scene.tif labels.tif --side 20000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import rasterio

CLASSES = ("sky", "building", "road", "tree", "sidewalk")
PATCH = 32  # side of a square of one class
BLOCK = 512
PLACE = rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5)


def patches(root: Path, count: int) -> np.ndarray:
    """(class, count, PATCH, PATCH, 4) uint16: squares whose labels are of one class."""
    names = (root / "classes.txt").read_text().split()
    found: list[list[np.ndarray]] = [[] for _ in CLASSES]
    for path in sorted((root / "images" / "train").iterdir()):
        image = cv2.imread(str(path))[..., ::-1]
        labels = cv2.imread(str(root / "annotations" / "train" / f"{path.stem}.png"), -1)
        for row in range(0, labels.shape[0] - PATCH + 1, PATCH):
            for column in range(0, labels.shape[1] - PATCH + 1, PATCH):
                place = (slice(row, row + PATCH), slice(column, column + PATCH))
                present = np.unique(labels[place])
                name = names[present[0]] if len(present) == 1 and present[0] < len(names) else ""
                if name in CLASSES:
                    found[CLASSES.index(name)].append(image[place])
        if min(map(len, found)) >= count:
            break
    chosen = np.array([each[:count] for each in found])
    values = chosen.astype(np.float32)
    fourth = np.clip(2 * values[..., 1] - values[..., 0], 0, 255)
    return np.concatenate([values, fourth[..., None]], axis=-1).astype(np.uint16) * 200


def classes_at(rows: np.ndarray, columns: np.ndarray, seed: int) -> np.ndarray:
    """Class of each pixel: the largest of one smooth field per class."""
    rng = np.random.default_rng(seed)
    fields = []
    for _ in CLASSES:
        angles, lengths = rng.uniform(0, 2 * np.pi, 4), rng.uniform(500, 1500, 4)
        phases = rng.uniform(0, 2 * np.pi, 4)
        steps = 2 * np.pi / lengths
        fields.append(
            sum(
                np.sin(step * (np.cos(a) * columns + np.sin(a) * rows) + phase)
                for a, step, phase in zip(angles, steps, phases, strict=True)
            )
        )
    return np.argmax(fields, axis=0).astype(np.uint8)


def main() -> None:
    """Write both rasters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("root", type=Path, help="custom dataset with the classes of CamVid")
    parser.add_argument("scene", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    side, textures = arguments.side, patches(arguments.root, 40)
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "crs": "EPSG:32633",
        "transform": PLACE,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "if_safer",
    }
    with (
        rasterio.open(
            arguments.scene, "w", count=4, dtype="uint16", photometric="minisblack", **profile
        ) as scene,
        rasterio.open(arguments.labels, "w", count=1, dtype="uint8", nodata=255, **profile) as out,
    ):
        scene.descriptions = ("red", "green", "blue", "nir")
        out.update_tags(classes='["' + '", "'.join(CLASSES) + '"]')
        for _, window in scene.block_windows(1):
            rows = np.arange(window.row_off, window.row_off + window.height)[:, None]
            columns = np.arange(window.col_off, window.col_off + window.width)[None]
            found = classes_at(rows, columns, arguments.seed)
            cells = (rows // PATCH * 7919 + columns // PATCH * 104_729) % 40
            pixels = textures[found, cells, rows % PATCH, columns % PATCH]
            scene.write(pixels.transpose(2, 0, 1), window=window)
            out.write(found, 1, window=window)


if __name__ == "__main__":
    main()
