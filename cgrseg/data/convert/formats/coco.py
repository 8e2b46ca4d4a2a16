"""COCO instance files with polygons and run-length masks.

Format: https://cocodataset.org/#format-data, which most labeling tools export.  Instances overlap,
a label map cannot: the larger ones are drawn first and the smaller ones on top.
"""

from __future__ import annotations

import json
import os.path
from collections import defaultdict
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cgrseg.class_names import check_class_names, clean_name
from cgrseg.data.convert.annotation_writer import AnnotatedImage, AnnotationWriter, score_entry
from cgrseg.data.convert.custom_format import (
    Background,
    CustomFormat,
    ImageFolder,
    OutFolder,
    written_name,
)
from cgrseg.data.convert.format import Annotations, Argument, Failure, Task, reading, skipped
from cgrseg.data.convert.image_names import find_file, named_inside
from cgrseg.data.convert.regions import placed
from cgrseg.data.convert.shapes import (
    decode_mask,
    encode_counts,
    encode_runs,
    fill_polygon,
)
from cgrseg.data.convert.tool_format import peek_json
from cgrseg.errors import MALFORMED, DataError
from cgrseg.input_files import read_input_text
from cgrseg.provenance import joint_state


class CocoWriter(AnnotationWriter):
    """An instance file whose annotations have scores; category ids are class ids plus 1."""

    file = "annotations.json"
    advice = "import it where the tool takes COCO instances; pycocotools loads it"

    def begin(self) -> str:
        """Categories, and the beginning of the annotations."""
        self._images: list[dict[str, Any]] = []
        self._count = 0
        categories = [{"id": k, "name": name} for k, name in enumerate(self.classes, start=1)]
        return (
            '{"info": {"description": "predictions"}, "licenses": [],\n"categories": '
            f'{json.dumps(categories, ensure_ascii=False)},\n"annotations": ['
        )

    def add(self, image: AnnotatedImage, folder: Path) -> str:
        """Annotations of the image."""
        key = len(self._images) + 1
        size = {"width": image.width, "height": image.height}
        self._images.append({"id": key, "file_name": image.name, **size})
        texts = []
        for region in image.regions:
            rows, columns = region.mask.shape
            segmentation: Any = [region.joined_outline().ravel().tolist()]
            if self.shape == "mask":
                mask = placed(region.mask, region.top, region.left, image.height, image.width)
                segmentation = {
                    "size": [image.height, image.width],
                    "counts": encode_counts(encode_runs(mask.T.ravel())),
                }
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": key,
                "category_id": region.value + 1,
                "segmentation": segmentation,
                "area": region.pixels,
                "bbox": [region.left, region.top, columns, rows],
                "iscrowd": 0,
                **score_entry(region.score),
            }
            texts.append(("," if self._count > 1 else "") + "\n" + json.dumps(annotation))
        return "".join(texts)

    def end(self) -> str:
        """The images."""
        return f'\n],\n"images": {json.dumps(self._images, ensure_ascii=False)}}}\n'


@dataclass
class CocoInstances(CustomFormat):
    """COCO instances: polygons and run-length masks.

    Example:
      cgrseg data convert coco instances_train.json train2017 data/mine --split train
    """

    name = "coco"
    writer = CocoWriter
    source: Annotated[Path, Argument("instances JSON file.")]
    images: ImageFolder
    out: OutFolder
    _: KW_ONLY
    background: Background = None

    @classmethod
    def recognize(cls, source: Path) -> str:
        """Images, annotations and categories."""
        data = peek_json(source)
        if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= data.keys():
            return ""
        listed = data["annotations"]
        panoptic = isinstance(listed, list) and any("segments_info" in each for each in listed[:1])
        return "" if panoptic else "images, annotations and categories"

    def read(self) -> Annotations:
        """Classes are the categories in the order of their ids, after the background."""
        state = joint_state([self.source])  # before it is read
        names, images, annotations = read_coco(self.source)
        wanted = self.kept_names(self.source, [names[key] for key in sorted(names)])
        background = None if self.background is None else clean_name(self.background)
        if background is not None:
            wanted = [background, *(name for name in wanted if name != background)]
        table = self.settle_classes(wanted, background=background)
        values = {key: table.value(name) for key, name in names.items()}
        tasks: list[Task | Failure] = []
        for image in images:
            path = self._find_image(image)
            if isinstance(path, Failure):
                tasks.append(path)
                continue
            # Only what drawing needs travels to the worker process.
            parts = [
                {
                    "id": each.get("id"),
                    "segmentation": each.get("segmentation"),
                    "value": values[each["category_id"]],
                }
                for each in annotations.get(image["id"], [])
            ]
            tasks.append(
                self.task(
                    self.source,
                    path,
                    below=os.path.relpath(path.parent, self.images),
                    size=(image["height"], image["width"]),
                    source_state=state,
                    content=(image, parts, table.unlabeled),
                )
            )
        return self.shape_annotations(table, tasks)

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The annotations of one image."""
        image, annotations, unlabeled = task.content
        height, width = image["height"], image["width"]
        masks: list[tuple[int, int, np.ndarray]] = []
        for annotation in annotations:
            try:
                mask = _mask(annotation["segmentation"], height, width)
            except MALFORMED as error:
                raise DataError(
                    f"{task.source}, image {image['file_name']}, annotation {annotation['id']}",
                    found=f"it cannot be drawn ({type(error).__name__}: {error})",
                    expected="a segmentation: polygons of x, y pairs, or run-length counts of the "
                    "image's size",
                    remedy="export it again with segmentation masks, or remove the annotation",
                ) from error
            masks.append((int(mask.sum()), annotation["value"], mask))
        labels = np.full((height, width), unlabeled, dtype=np.uint8)
        for _, value, mask in sorted(masks, key=lambda item: -item[0]):
            labels[mask] = value
        return labels

    def _find_image(self, image: dict[str, Any]) -> Path | Failure:
        try:
            path = find_file(named_inside(self.images, image["file_name"]))
        except ValueError as error:
            return skipped(
                f"{self.source}, image {image['id']}",
                file=image["file_name"],
                found=str(error),
                expected="a file_name below the folder of images",
                remedy="name the folder that all file_names are relative to, or correct file_name",
            )
        if path.is_file():
            return path
        return skipped(
            path,
            found="no such file",
            expected=f"the image that {self.source.name} names",
            remedy="check the folder of images",
        )


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(height, width) bool of one annotation: the union of its parts."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
        return decode_mask(segmentation["counts"], height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no segmentation, only a box")
    mask = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        mask |= fill_polygon(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), height, width)
    return mask


def read_coco(
    path: Path,
) -> tuple[dict[int, str], list[dict[str, Any]], dict[Any, list[dict[str, Any]]]]:
    """Category names by id, images, and annotations by image id.

    Raises:
        DataError: unreadable, not COCO, an annotation of an unknown category or image, or names
            that cannot be class names.
    """
    with reading(
        path,
        expected="a COCO instance file with images, annotations and categories",
        remedy="export it again from the labeling tool",
    ):
        data = json.loads(read_input_text(path, "utf-8-sig"))
        names = _categories(path, data["categories"])
        images = [
            {
                "id": item["id"],
                "file_name": str(item["file_name"]),
                "height": int(item["height"]),
                "width": int(item["width"]),
            }
            for item in data["images"]
        ]
        known = {item["id"] for item in images}
        annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for item in data["annotations"]:
            if item["category_id"] not in names or item["image_id"] not in known:
                raise ValueError(
                    f"annotation {item.get('id')} belongs to category {item['category_id']} and "
                    f"image {item['image_id']}, of which the file lacks one"
                )
            annotations[item["image_id"]].append(item)
    return names, images, annotations


def _categories(path: Path, items: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for item in items:
        key = int(item["id"])
        if key in names:
            raise ValueError(f"two categories have the id {key}")
        names[key] = written_name(item["name"], f"{path}, category {key}")
    if names:
        check_class_names(
            names.values(),
            path,
            places=[f"category {key}" for key in names],
            remedy="give each category its own name in the labeling tool, and export again",
        )
    return names
