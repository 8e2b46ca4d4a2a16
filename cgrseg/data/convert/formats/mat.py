"""Label maps of one array in a MATLAB file each, beside images of the same names."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cgrseg.class_names import MAX_CLASSES, check_class_names
from cgrseg.data.convert.custom_format import (
    IGNORE,
    Classes,
    CustomFormat,
    ImageFolder,
    OutFolder,
)
from cgrseg.data.convert.format import Annotations, Argument, Option, Task
from cgrseg.data.convert.matlab import only_field, read_label_field
from cgrseg.data.file_index import plain_form
from cgrseg.datasets.spec import distinct_colors
from cgrseg.errors import DataError


@dataclass
class MatLabels(CustomFormat):
    """Label maps in MATLAB files, one array each; the class list names the stored values.

    Example:
      cgrseg data convert mat images labels data/mine --classes none,road,car --ignore none
    """

    name = "mat"
    images: ImageFolder
    labels: Annotated[Path, Argument("Folder of the MATLAB files.")]
    out: OutFolder
    _: KW_ONLY
    classes: Classes = None
    field: Annotated[
        str | None,
        Option("Variable that holds the label map. Default: the only variable of the file."),
    ] = None

    def read(self) -> Annotations:
        """Class ids are the order of the class list, without the ignored names."""
        if self.classes is None:
            raise DataError(
                self.labels,
                found="label maps without a class list",
                expected="the name of each stored value, from 0 on",
                remedy="for example --classes background,road,car",
            )
        names = check_class_names(self.classes, "--classes", most=MAX_CLASSES)
        table = self.settle_classes(self.kept_names("--classes", names))
        values = tuple(table.value(name) for name in names)
        files = sorted(each for each in self.labels.glob("*") if each.suffix.lower() == ".mat")
        stems = [(plain_form(path.stem), path) for path in files]
        return Annotations(
            classes=table.classes,
            images=self.pairs(
                self.images, self.labels, stems, (self.field, values), what="MATLAB file"
            ),
            settings={
                "classes": table.classes,
                "values": {str(stored): value for stored, value in enumerate(values)},
                "field": self.field,
            },
            palette=distinct_colors(len(table.classes)),
            image_mode=self.image_mode,
        )

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The array of one file, its values as class ids."""
        field, values = task.content
        stored = read_label_field(task.source, field or only_field(task.source), highest=IGNORE)
        known = np.full(IGNORE + 1, IGNORE, np.uint8)
        known[: len(values)] = values
        strange = np.unique(stored[(stored >= len(values)) & (stored != IGNORE)])
        if strange.size:
            raise DataError(
                task.source,
                found=f"values without a name: {', '.join(map(str, strange[:8]))}",
                expected=f"values from 0 to {len(values) - 1}, the {len(values)} names of "
                "--classes, or 255",
                remedy="name each stored value from 0 on; a name that --ignore repeats is left out",
            )
        return known[stored]
