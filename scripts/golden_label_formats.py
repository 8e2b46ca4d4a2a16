"""Label maps that other tools make from genuine files of annotation tools, as golden answers.

Run in an environment of its own; tests/data/test_convert_tools.py compares with the result:

    pip install datumaro label-studio-sdk pycocotools
    python scripts/golden_label_formats.py FOLDER tests/golden/label_formats.json

FOLDER holds the files of Datumaro's and Label Studio's test assets (tests/assets of
openvinotoolkit/datumaro, data_polygons.json of HumanSignal/label-studio-sdk).  Datumaro reads its
formats, pycocotools fills polygons and boxes; the higher z_order and the later one lie on top.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from datumaro import AnnotationType, Dataset
from label_studio_sdk.converter.brush import decode_rle, encode_rle
from pycocotools import mask as coco_masks

CASES = {
    "cvat_task": ("cvat", "cvat_dataset/for_images/export_task", {}),
    "cvat_project": ("cvat", "cvat_dataset/for_images/export_project", {}),
    "mapillary": ("mapillary_vistas", "mapillary_vistas_dataset", {}),
    "ade20k2017": ("ade20k2017", "ade20k2017_dataset/dataset", {}),
    "ade20k2020": ("ade20k2020", "ade20k2020_dataset/dataset", {}),
    "cityscapes": ("cityscapes", "cityscapes_dataset/dataset", {}),
    "voc": ("voc_segmentation", "voc_dataset/voc_dataset1", {}),
    "camvid": ("camvid", "camvid_dataset", {}),
    "datumaro_masks": (
        "common_semantic_segmentation",
        "common_semantic_segmentation_dataset/dataset",
        {},
    ),
    "datumaro_masks_prefix": (
        "common_semantic_segmentation",
        "common_semantic_segmentation_dataset/non_standard_dataset",
        {"image_prefix": "image_", "mask_prefix": "gt_"},
    ),
    "coco_stuff": ("coco_stuff", "coco_dataset/coco_stuff", {}),
}


def mask_of(each, height, width, boxes):
    """Pixels of an annotation; None: it has no area, or is a box beside a mask."""
    if each.type == AnnotationType.mask:
        return np.asarray(each.image, bool)
    if each.type == AnnotationType.polygon:
        points = list(each.points)
    elif each.type == AnnotationType.bbox and boxes:
        x, y, w, h = each.get_bbox()
        points = [x, y, x + w, y, x + w, y + h, x, y + h]
    else:
        return None
    return coco_masks.decode(coco_masks.frPyObjects([points], height, width))[..., 0].astype(bool)


def label_map(item, parts, boxes):
    """Label of each pixel, -1 where no annotation lies."""
    labeled = [each for each in item.annotations if getattr(each, "label", None) is not None]
    labeled = [each for each in labeled if parts or each.z_order == 0]
    height, width = item.media.size
    found = np.full((height, width), -1)
    for each in sorted(labeled, key=lambda annotation: annotation.z_order):
        mask = mask_of(each, height, width, boxes)
        if mask is not None:
            found[mask] = each.label
    return found


def main(folder: Path, target: Path) -> None:
    """Write the label maps of all cases, and two of Label Studio's."""
    result = {}
    for case, (kind, path, options) in CASES.items():
        data = Dataset.import_from(str(folder / path), kind, **options)
        names = [each.name for each in data.categories()[AnnotationType.label]]
        result[case] = {}
        for item in data:
            labels = label_map(item, not case.startswith("ade20k"), kind == "cvat")
            used = sorted({int(value) for value in np.unique(labels)} - {-1})
            result[case][f"{item.subset}/{item.id}"] = {
                "names": {str(value): names[value] for value in used},
                "labels": labels.tolist(),
            }
    task = json.loads((folder / "label_studio/data_polygons.json").read_text())[0]
    region = task["annotations"][0]["result"][0]
    size = region["original_height"], region["original_width"]
    points = [
        coordinate / 100 * side
        for x, y in region["value"]["points"]
        for coordinate, side in ((x, size[1]), (y, size[0]))
    ]
    runs = coco_masks.frPyObjects([points], *size)[0]
    result["label_studio_polygon"] = {"size": size, "counts": runs["counts"].decode()}
    generator = np.random.default_rng(0)
    mask = np.kron(generator.integers(0, 2, (9, 13)), np.ones((5, 7), int)).astype(np.uint8) * 255
    mask[3:20, 2:50:3] = 255  # runs of one
    pixels = np.repeat(mask.reshape(-1, 1), 4, axis=1).reshape(-1)
    stream = encode_rle(pixels)
    alpha = np.reshape(decode_rle(stream), (*mask.shape, 4))[..., 3]
    encoded = coco_masks.encode(np.asfortranarray((alpha > 0).astype(np.uint8)))
    result["label_studio_brush"] = {
        "size": mask.shape,
        "rle": [int(value) for value in stream],
        "counts": encoded["counts"].decode(),
    }
    target.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
