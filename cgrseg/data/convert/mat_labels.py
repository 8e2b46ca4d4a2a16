"""Label maps of one array in a MATLAB file each, beside images of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgrseg.class_names import MAX_CLASSES, check_class_names, clean_name
from cgrseg.data.convert.custom import (
    IGNORE,
    CustomLayout,
    refuse_unused_ignored,
    settle_classes,
)
from cgrseg.data.convert.mat import only_field, read_label_field
from cgrseg.data.convert.place import ImageMode, index_images
from cgrseg.data.convert.runner import (
    ConversionReport,
    Failure,
    Task,
    locking_output,
    run_conversion,
)
from cgrseg.data.custom import distinct_colors
from cgrseg.data.file_index import plain_form
from cgrseg.errors import DataError, explain
from cgrseg.progress import Progress


@locking_output
def convert_mat_labels(
    images: Path | str,
    labels: Path | str,
    out: Path | str,
    *,
    classes: Sequence[str] | None,
    field: str | None = None,
    split: str | None = None,
    ignored: Sequence[str] = (),
    image_mode: ImageMode = "link",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert label maps in MATLAB files to the custom layout.

    Args:
        images: folder of images.
        labels: folder of `.mat` files with the images' names.
        out: folder that gets images, annotations and classes.txt.
        classes: name of each stored value, from 0 on; ids are their order without `ignored`.
            None: an error that says so.
        field: variable that holds the label map; None: the only one of each file.
        split: name of the split's folders; None: no split folders.
        ignored: names whose pixels become 255.
        image_mode: hard links ('link') or independent files ('copy').
        workers: processes; None chooses by the amount of work.
        overwrite: make finished files anew too.
        progress: called with (done, total).

    Raises:
        DataError: no class list, nothing to convert, or contradicting class names.
        EnvironmentProblem: scipy is missing, a full disk and the like.
    """
    layout = CustomLayout(Path(out), split)
    if classes is None:
        raise DataError(
            labels,
            found="label maps without a class list",
            expected="the name of each stored value, from 0 on",
            remedy="for example --classes background,road,car",
        )
    names = check_class_names(classes, "--classes", most=MAX_CLASSES)
    ignored = [clean_name(name) for name in ignored]
    refuse_unused_ignored("--classes", ignored, list(names))
    wanted = [name for name in names if name not in ignored]
    table = settle_classes(layout, given=wanted, found=(), ignored=ignored)
    report = ConversionReport("mat", layout.root, table.classes)
    lookup = tuple(table.value(name) for name in names)
    known = index_images(Path(images))
    files = sorted(path for path in Path(labels).glob("*") if path.suffix.lower() == ".mat")
    tasks = []
    for path in files:
        image = known.get(plain_form(path.stem))
        if image is None:
            report.failures.append(_unpaired(path, Path(images), "image"))
            continue
        tasks.append(
            Task(
                source=path,
                label=layout.labels / f"{image.stem}.png",
                inputs=(path,),
                image=image,
                image_target=layout.images / image.name,
                content=(field, lookup),
            )
        )
    for stem in sorted(set(known) - {plain_form(path.stem) for path in files}):
        report.failures.append(_unpaired(known[stem], Path(labels), "MATLAB file"))
    return run_conversion(
        report,
        tasks,
        draw_label,
        record_folder=layout.labels,
        class_file=layout.class_file,
        settings={
            "classes": table.classes,
            "values": {str(stored): value for stored, value in enumerate(lookup)},
            "field": field,
        },
        palette=distinct_colors(len(table.classes)),
        image_mode=image_mode,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def draw_label(task: Task) -> np.ndarray:
    """The label map (H, W) uint8 of one MATLAB file.

    Raises:
        DataError: not one array, or a value that has no name.
    """
    field, lookup = task.content
    stored = read_label_field(task.source, field or only_field(task.source), highest=IGNORE)
    known = np.full(IGNORE + 1, IGNORE, np.uint8)
    known[: len(lookup)] = lookup
    strange = np.unique(stored[(stored >= len(lookup)) & (stored != IGNORE)])
    if strange.size:
        raise DataError(
            task.source,
            found=f"values without a name: {', '.join(map(str, strange[:8]))}",
            expected=f"values from 0 to {len(lookup) - 1}, the {len(lookup)} names of "
            "--classes, or 255",
            remedy="name each stored value from 0 on; a name that --ignore repeats is left out",
        )
    return known[stored]


def _unpaired(path: Path, folder: Path, what: str) -> Failure:
    return Failure(
        str(path),
        explain(
            path,
            found=f"no {what} of this name in {folder}",
            expected="one MATLAB file for each image",
            remedy=f"add the {what}, or remove the file",
        ),
    )
