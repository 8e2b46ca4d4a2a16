"""COCO-Stuff-10k: from the raw download to the prepared layout.

The raw download (version 1.1 of https://github.com/nightrome/cocostuff10k) has `images/*.jpg`,
`annotations/*.mat` and `imageLists/{train,test,all}.txt`.  The field `S` of a `.mat` file holds
0 = unlabeled and COCO-Stuff ids 1..182, eleven of which never occur because their classes were
merged away.  The prepared layout, which mmsegmentation's users have as well, is
`images/{train2014,test2014}` and `annotations/{train2014,test2014}/<stem>_labelTrainIds.png` with
0 = unlabeled and the 171 classes as 1..171.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cgrseg.data.convert.custom_format import Placing
from cgrseg.data.convert.format import (
    Annotations,
    Argument,
    Failure,
    Format,
    Option,
    Task,
    skipped,
)
from cgrseg.data.convert.image_names import read_stems
from cgrseg.data.convert.matlab import read_label_field
from cgrseg.datasets import get_spec
from cgrseg.errors import DataError

LABEL_SUFFIX = "_labelTrainIds.png"
HIGHEST_ID = 182
_SPLITS = {"train": "train2014", "test": "test2014"}
_NO_CLASS = 255


@dataclass
class CocoStuff10k(Format):
    """COCO-Stuff-10k from its raw download (images, annotations/*.mat, imageLists).

    Example:
      cgrseg data convert coco-stuff10k downloads/cocostuff-10k-v1.1 --out data/coco_stuff10k
    """

    name = "coco-stuff10k"
    source: Annotated[Path, Argument("Folder to convert.")]
    out: Annotated[Path | None, Option("Folder for the result. Default: SOURCE itself.")] = None
    _: KW_ONLY
    lists: Annotated[
        Sequence[str] | None, Option("May be repeated: train, test. Default: both.", name="split")
    ] = None
    image_mode: Placing = "link"

    @property
    def root(self) -> Path:
        """Folder of the result."""
        return self.out or self.source

    @property
    def label_folder(self) -> Path:
        """Folder of both splits' label maps."""
        return self.root / "annotations"

    def read(self) -> Annotations:
        """The images of the lists, with the image and the `.mat` file of each."""
        for folder in ("images", "annotations", "imageLists"):
            if not (self.source / folder).is_dir():
                raise DataError(
                    self.source,
                    found=f"no folder {folder!r}",
                    expected="the raw COCO-Stuff-10k download: images/*.jpg, annotations/*.mat "
                    "and imageLists/{train,test}.txt",
                    remedy="extract cocostuff-10k-v1.1.zip and name the folder that it made",
                )
        tasks: list[Task | Failure] = []
        lists: dict[str, int] = {}
        seen: dict[str, str] = {}
        for name in self._chosen_lists():
            for stem in read_stems(self.source / "imageLists" / f"{name}.txt"):
                if stem in seen:
                    problem = skipped(
                        f"{stem} in imageLists/{name}.txt",
                        file=stem,
                        found=f"it is in {seen[stem]}.txt already",
                        expected="an image either trains or tests",
                        remedy="remove it from one of the lists",
                    )
                    tasks.append(problem)
                    continue
                seen[stem] = name
                task = self._task(_SPLITS[name], stem)
                tasks.append(task)
                lists[name] = lists.get(name, 0) + isinstance(task, Task)
        spec = get_spec("coco_stuff10k")
        return Annotations(
            classes=spec.classes,
            images=tasks,
            settings={"unlabelled": 0, "first_class": 1},
            palette=((0, 0, 0), *spec.palette),
            first_id=1,
            image_mode=self.image_mode,
            lists={name: count for name, count in lists.items() if count},
        )

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The prepared label map of one `.mat` file, values 0..171."""
        raw = read_label_field(task.source, "S", highest=HIGHEST_ID)
        labels = np.take(train_ids(), raw)
        if (labels == _NO_CLASS).any():
            strange = sorted(int(k) for k in np.unique(raw[labels == _NO_CLASS]))
            raise DataError(
                task.source,
                found=f"ids {strange} in field 'S', which COCO-Stuff does not use",
                expected="0 and the 171 ids that the dataset has among 1..182",
                remedy="extract or download the annotations again",
            )
        return labels

    def _chosen_lists(self) -> list[str]:
        folder = self.source / "imageLists"
        present = [name for name in _SPLITS if (folder / f"{name}.txt").is_file()]
        wanted = present if self.lists is None else list(dict.fromkeys(self.lists))
        if not wanted or not set(wanted) <= set(present):
            raise DataError(
                folder,
                found=f"lists {present or 'none'}; asked for {wanted or 'those that exist'}",
                expected="train.txt and test.txt, or one of them (all.txt says nothing about "
                "who trains)",
                remedy="name lists that are there, or extract the download again",
            )
        return wanted

    def _task(self, split: str, stem: str) -> Task | Failure:
        label = self.source / "annotations" / f"{stem}.mat"
        image = self.source / "images" / f"{stem}.jpg"
        for path in (label, image):
            if not path.is_file():
                return skipped(
                    path,
                    found="no such file, though a list names it",
                    expected=f"an image and a label for {stem}",
                    remedy="extract the download again, or take the line out of the list",
                )
        return Task(
            source=label,
            label=self.label_folder / split / f"{stem}{LABEL_SUFFIX}",
            image=image,
            image_target=self.root / "images" / split / image.name,
        )


@functools.lru_cache(maxsize=1)
def train_ids() -> np.ndarray:
    """Prepared label value of each raw id of field `S`.

    COCO-Stuff-164k stores the same classes in the same order as raw id minus one, so its label
    rule in the catalogue decides which ids exist.

    Returns:
        (183,) uint8: 0 stays 0, classes become 1..171, the eleven unused ids 255.
    """
    rule = get_spec("coco_stuff164k").label_rule.lookup
    table = np.full(HIGHEST_ID + 1, _NO_CLASS, dtype=np.uint8)
    table[0] = 0
    for raw in range(1, HIGHEST_ID + 1):
        if rule[raw - 1] != _NO_CLASS:
            table[raw] = rule[raw - 1] + 1
    return table
