"""Label maps that other tools make from genuine files of annotation tools, as golden answers.

Run in an environment of its own; tests/data/test_convert_tools.py compares with the result:

    pip install datumaro label-studio-sdk pycocotools
    python scripts/golden_label_formats.py FOLDER tests/golden/label_formats.json

FOLDER holds the files of Datumaro's and Label Studio's test assets (tests/assets of
openvinotoolkit/datumaro, data_polygons.json of HumanSignal/label-studio-sdk).  Datumaro reads its
formats, pycocotools fills polygons and boxes; the higher z_order and the later one lie on top.

With one argument, it checks the files of `cgrseg predict --save` (any formats) in the same way:
each tool's library opens them, and its label maps are compared with those in labels/. This needs
labelme and shapely as well:

    python scripts/golden_label_formats.py PREDICTIONS
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import shapely.geometry
from datumaro import AnnotationType, Dataset
from label_studio_sdk.converter.brush import decode_rle, encode_rle
from label_studio_sdk.label_interface import LabelInterface
from labelme._label_file import LabelFile
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

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


def polygon_mask(points, size):
    """Pixels of a polygon (N, 2) as pycocotools fills it."""
    runs = coco_masks.frPyObjects([np.asarray(points, float).ravel().tolist()], *size)
    return coco_masks.decode(runs)[..., 0].astype(bool)


def datumaro_maps(folder):
    """Class name and mask of each region of each image, as Datumaro reads CVAT's file."""
    sizes = {}
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "annotations.xml", place)
        for each in ElementTree.parse(folder / "annotations.xml").iter("image"):
            image = Path(place, "images", each.get("name"))  # Datumaro wants a file
            image.parent.mkdir(parents=True, exist_ok=True)
            sizes[image.stem] = int(each.get("height")), int(each.get("width"))
            Image.new("L", sizes[image.stem][::-1]).save(image)
        data = Dataset.import_from(place, "cvat")
        names = [each.name for each in data.categories()[AnnotationType.label]]
        for item in data:
            size = sizes[Path(item.id).name]
            regions = [(names[each.label], mask_of(each, *size, True)) for each in item.annotations]
            assert all(0 <= float(each.attributes["score"]) <= 1 for each in item.annotations)
            yield Path(item.id).name, size, regions


def coco_maps(folder):
    """The same by pycocotools."""
    data = COCO(str(folder / "annotations.json"))
    for key, image in data.imgs.items():
        found = data.loadAnns(data.getAnnIds(imgIds=key))
        regions = [
            (data.cats[each["category_id"]]["name"], data.annToMask(each).astype(bool))
            for each in found
        ]
        yield Path(image["file_name"]).stem, (image["height"], image["width"]), regions


def label_studio_maps(folder):
    """The same by Label Studio's SDK, which validates the predictions by the labeling config."""
    interface = LabelInterface((folder / "labeling_config.xml").read_text("utf-8"))
    for task in json.loads((folder / "tasks.json").read_text("utf-8")):
        (prediction,) = task["predictions"]
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
        regions = []
        for each in prediction["result"]:
            size = each["original_height"], each["original_width"]
            value = each["value"]
            if "rle" in value:
                mask = np.reshape(decode_rle(value["rle"]), (*size, 4))[..., 3] > 0
            else:
                points = np.array(value["points"]) * (size[1] / 100, size[0] / 100)
                mask = polygon_mask(points, size)
            regions.append((value[each["type"]][0], mask))
        yield Path(task["data"]["image"].partition("?d=")[2]).stem, size, regions


def labelme_maps(folder):
    """The same by LabelMe."""
    for file in sorted(folder.glob("*.json")):
        data = json.loads(file.read_text("utf-8"))
        size = data["imageHeight"], data["imageWidth"]
        regions = []
        for each in LabelFile(str(file)).shapes:
            if each["mask"] is None:
                mask = polygon_mask(each["points"], size)
            else:
                mask = np.zeros(size, bool)
                (left, top), (right, bottom) = np.array(each["points"]).astype(int)
                mask[top : bottom + 1, left : right + 1] = each["mask"]
            regions.append((each["label"], mask))
        yield file.stem, size, regions


def geojson_maps(folder):
    """The same by shapely, which also says whether each polygon is valid."""
    for file in sorted(folder.glob("*.geojson")):
        data = json.loads(file.read_text("utf-8"))
        size = data["image"]["height"], data["image"]["width"]
        regions = []
        for each in data["features"]:
            polygon = shapely.geometry.shape(each["geometry"])
            assert polygon.is_valid, file
            mask = polygon_mask(polygon.exterior.coords, size)
            for hole in polygon.interiors:
                mask &= ~polygon_mask(hole.coords, size)
            regions.append((each["properties"]["classification"]["name"], mask))
        yield file.stem, size, regions


READERS = {
    "cvat": datumaro_maps,
    "coco": coco_maps,
    "label-studio": label_studio_maps,
    "labelme": labelme_maps,
    "geojson": geojson_maps,
}


def accept(folder: Path) -> None:
    """Print the agreement of each format's files with the label maps of the folder."""
    names = json.loads((folder / "prediction.json").read_text())["classes"]
    for kind, maps in READERS.items():
        if not (folder / kind).is_dir():
            continue
        images = regions = changed = far = 0
        both, either = np.zeros(len(names)), np.zeros(len(names))
        for stem, size, found in maps(folder / kind):
            source = np.asarray(Image.open(next((folder / "labels").rglob(f"{stem}.png"))))
            labels = np.full(size, 255)
            for name, mask in found:
                labels[mask] = names.index(name)
            images, regions = images + 1, regions + len(found)
            for value in range(len(names)):
                both[value] += ((labels == value) & (source == value)).sum()
                either[value] += ((labels == value) | (source == value)).sum()
            wrong = labels != source
            changed += wrong.sum()
            padded = np.pad(source, 1, mode="edge")
            around = [
                padded[row : row + size[0], column : column + size[1]]
                for row in range(3)
                for column in range(3)
            ]
            far += (wrong & np.all([each == source for each in around], axis=0)).sum()
        iou = both[either > 0] / either[either > 0]
        print(
            f"{kind}: {images} images, {regions} regions, {changed} pixels differ, {far} of them "
            f"away from a border, IoU per class at least {iou.min():.4f}, mean {iou.mean():.4f}"
        )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        accept(Path(sys.argv[1]))
    elif len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        raise SystemExit(__doc__)
