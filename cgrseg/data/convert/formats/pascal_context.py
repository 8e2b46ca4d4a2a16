"""Pascal Context: label maps of 59 classes from either published form.

Form one is `trainval_merged.json` of PASCAL in Detail
(https://github.com/zhanghang1989/detail-api): one run-length encoded region per annotation,
`category_id` among 459 ids.  Form two is the original release
(https://cs.stanford.edu/~roozbeh/pascal-context/, R. Mottaghi et al., CVPR 2014): one `.mat` file
per image with 459 ids in the field `LabelMap`.  Both become `SegmentationClassContext/<stem>.png`
with 0 = background and the 59 frequent classes as 1..59 in the order of their ids, and split lists
in `ImageSets/SegmentationContext`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cgrseg.data.convert.format import (
    Annotations,
    Argument,
    ConversionReport,
    Format,
    Option,
    Task,
    reading,
    skipped,
)
from cgrseg.data.convert.image_names import named_inside, read_stems
from cgrseg.data.convert.matlab import read_label_field
from cgrseg.data.convert.shapes import decode_mask
from cgrseg.datasets import get_spec
from cgrseg.errors import MALFORMED, DataError
from cgrseg.files import atomic_write_text
from cgrseg.input_files import read_input, read_input_text
from cgrseg.provenance import joint_state

HIGHEST_ID = 459

# The ids, among the 459, of the 59 classes in the order of `pascal_context59`:
# https://cs.stanford.edu/~roozbeh/pascal-context/ (labels.txt, 59_labels.txt).
IDS_OF_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98,
    104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260,
    284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416,
    420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

_LISTS = Path("ImageSets") / "SegmentationContext"


@dataclass
class PascalContext(Format):
    """Pascal Context, 59 classes, from either published form.

    Example:
      cgrseg data convert pascal-context data/VOCdevkit/VOC2010/trainval_merged.json
    """

    name = "pascal-context"
    source: Annotated[
        Path, Argument("trainval_merged.json, or the folder of the 459-class .mat files.")
    ]
    out: Annotated[
        Path,
        Option(
            "VOC2010 folder, for SegmentationClassContext and ImageSets. Default: "
            "data/VOCdevkit/VOC2010."
        ),
    ] = Path("data/VOCdevkit/VOC2010")
    _: KW_ONLY
    lists: Annotated[
        Path | None,
        Option(
            "Folder with train.txt and val.txt. Default: as the source says, else "
            "OUT/ImageSets/SegmentationContext, else OUT/ImageSets/Main."
        ),
    ] = None

    @property
    def label_folder(self) -> Path:
        """Folder of the label maps."""
        return self.out / "SegmentationClassContext"

    def read(self) -> Annotations:
        """The images of either form, and which of them train and validate."""
        if self.source.is_dir():
            tasks, splits = self._tasks_from_mat(), self._find_lists()
        elif self.source.is_file():
            tasks, splits = self._tasks_from_json()
            if self.lists is not None:
                splits = self._find_lists()
        else:
            raise DataError(
                self.source,
                found="no such file or folder",
                expected="trainval_merged.json, or the folder of the 459-class .mat files",
                remedy="check the path",
            )
        notes = []
        absent = sum(1 for task in tasks if task.image is None)
        if absent:
            notes.append(
                f"{absent} of {len(tasks)} images are not in {self.out / 'JPEGImages'}; the "
                "VOC2010 download (VOCtrainval_03-May-2010.tar) has them"
            )
        spec = get_spec("pascal_context59")
        stems = {task.label.stem for task in tasks}
        return Annotations(
            classes=spec.classes,
            images=tasks,
            settings={"background": 0, "first_class": 1},
            palette=((0, 0, 0), *spec.palette),
            first_id=1,
            notes=notes,
            finish=functools.partial(self._write_lists, splits=splits, stems=stems),
        )

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The label map of one `.mat` file or of one image's regions, values 0..59.

        Where regions overlap, the later one in the file is on top.
        """
        if task.content is None:
            return np.take(to_59(), read_label_field(task.source, "LabelMap", highest=HIGHEST_ID))
        image, regions = task.content
        size = (image["height"], image["width"])
        labels = np.zeros(size, dtype=np.uint8)
        for region in regions:
            try:
                shape = region["segmentation"]
                if tuple(shape["size"]) != size:
                    raise ValueError(f"its size is {shape['size']}, the image's {list(size)}")
                mask = decode_mask(shape["counts"], *size)
                category = region["category_id"]
                if not 1 <= category <= HIGHEST_ID:
                    raise ValueError(f"category {category} is not among 1..{HIGHEST_ID}")
            except MALFORMED as error:
                raise DataError(
                    f"{task.source}, image {image['file_name']}, region {region.get('id')}",
                    found=f"it cannot be decoded ({error})",
                    expected="a run-length encoded mask of the image's size",
                    remedy="download the file again",
                ) from error
            labels[mask] = to_59()[category]
        return labels

    def _task(self, stem: str, content: Any = None) -> Task:
        """An image that is there already only serves to compare sizes."""
        image = self.out / "JPEGImages" / f"{stem}.jpg"
        return Task(
            source=self.source if content is not None else self.source / f"{stem}.mat",
            label=self.label_folder / f"{stem}.png",
            image=image if image.is_file() else None,
            size=None if content is None else (content[0]["height"], content[0]["width"]),
            content=content,
        )

    def _tasks_from_mat(self) -> list[Task]:
        files = sorted(self.source.glob("*.mat"))
        if not files:
            raise DataError(
                self.source,
                found="no .mat files",
                expected="one .mat file per image, as trainval.tar.gz of Pascal Context has",
                remedy="name the folder that holds them directly",
            )
        return [self._task(path.stem) for path in files]

    def _tasks_from_json(self) -> tuple[list[Task], dict[str, list[str]]]:
        state = joint_state([self.source])  # before it is read
        with reading(
            self.source,
            expected="PASCAL in Detail's JSON with images, annos_segmentation and categories",
            remedy="download trainval_merged.json again",
        ):
            data = json.loads(read_input_text(self.source, "utf-8-sig"))
            images, regions = data["images"], data["annos_segmentation"]
            self._check_categories(
                {int(each["category_id"]): str(each["name"]) for each in data["categories"]}
            )
            by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for region in regions:
                by_image[region["image_id"]].append(region)
            tasks = []
            splits: dict[str, list[str]] = {"train": [], "val": []}
            for each in images:
                stem = named_inside(self.out, str(each["file_name"])).stem
                image = {
                    "height": int(each["height"]),
                    "width": int(each["width"]),
                    "file_name": str(each["file_name"]),
                }
                task = self._task(stem, (image, by_image.get(each["image_id"], [])))
                tasks.append(replace(task, source_state=state))
                if each.get("phase") in splits:
                    splits[each["phase"]].append(stem)
        return tasks, splits

    def _check_categories(self, names: Mapping[int, str]) -> None:
        """Refuse a file whose ids mean other classes."""
        for category, name in zip(IDS_OF_59, get_spec("pascal_context59").classes, strict=True):
            if names.get(category, name) != name:
                raise DataError(
                    self.source,
                    found=f"category {category} is called {names[category]!r}",
                    expected=f"{name!r}, as in PASCAL in Detail",
                    remedy="use the published trainval_merged.json",
                )

    def _find_lists(self) -> dict[str, list[str]]:
        """Stems of each split, from the folder given or from the VOC folder.

        The 4,998 and 5,105 images of VOC2010's own `ImageSets/Main` are those of Pascal Context.
        """
        names = ("train", "val")
        if self.lists is not None:
            return {name: read_stems(self.lists / f"{name}.txt") for name in names}
        for folder in (self.out / _LISTS, self.out / "ImageSets" / "Main"):
            if all((folder / f"{name}.txt").is_file() for name in names):
                return {name: read_stems(folder / f"{name}.txt") for name in names}
        return {}

    def _write_lists(
        self, report: ConversionReport, *, splits: Mapping[str, list[str]], stems: set[str]
    ) -> None:
        """Write the split lists, restricted to images that have a label map."""
        if not any(splits.values()):
            report.notes.append(
                "no split lists were written: give a folder with train.txt and val.txt (--lists)"
            )
            return
        both = sorted(set(splits.get("train", ())) & set(splits.get("val", ())))
        if both:
            problem = skipped(
                "the split lists",
                file=both[0],
                found=f"{len(both)} images both train and validate, {both[0]} among them",
                expected="an image either trains or validates",
                remedy="correct the lists",
            )
            report.failures.append(problem)
            return
        for name, wanted in splits.items():
            label = self.label_folder
            listed = [
                stem for stem in wanted if stem in stems and (label / f"{stem}.png").is_file()
            ]
            target = self.out / _LISTS / f"{name}.txt"
            before = read_stems(target) if target.is_file() else []
            if not self.overwrite and not set(before) <= set(listed):
                report.notes.append(
                    f"{target} was there, with {len(set(before) - set(listed))} images that this "
                    "conversion has no label map for; it stays as it is"
                )
            elif listed:
                _write_unless_same(target, "".join(f"{stem}\n" for stem in listed))
                report.lists[name] = len(listed)
        unlisted = len(stems - {stem for wanted in splits.values() for stem in wanted})
        if unlisted:
            report.notes.append(f"{unlisted} label maps are in neither train.txt nor val.txt")


def _write_unless_same(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        if read_input(path) == text.encode("utf-8"):
            return
    atomic_write_text(path, text)


@functools.lru_cache(maxsize=1)
def to_59() -> np.ndarray:
    """(460,) uint8: 1..59 of each id among 459; 0 of all others."""
    table = np.zeros(HIGHEST_ID + 1, dtype=np.uint8)
    table[list(IDS_OF_59)] = np.arange(1, len(IDS_OF_59) + 1)
    return table
