"""Guess a dataset: from the files of a folder, or from the number of classes of a checkpoint."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from cgrseg.addresses import local_folder
from cgrseg.class_names import CLASS_LIST, numbered_names, read_class_list
from cgrseg.config.schema import DataConfig
from cgrseg.data.file_index import cut_suffix, visible_files
from cgrseg.data.folder_layout import IMAGE_SUFFIXES, find_folders, refuse_misplaced_root
from cgrseg.data.folder_survey import survey_folder
from cgrseg.datasets import get_spec, list_specs
from cgrseg.datasets.spec import Color, DatasetSpec, distinct_colors
from cgrseg.errors import DataError

_LOG = logging.getLogger("cgrseg.data")
_FILES_TRIED = 20


def guess_by_class_count(count: int) -> DatasetSpec | None:
    """The dataset of a checkpoint without class names; None: the count says nothing.

    Published checkpoints do not always hold class names.  A warning says what is assumed.
    """
    for spec in map(get_spec, list_specs()):
        if spec.known_by_class_count and spec.num_classes == count:
            _LOG.warning(
                "the checkpoint has no class names; %d classes are taken for those of %s",
                count,
                spec.title,
            )
            return spec
    _LOG.warning("the checkpoint has no class names; they are numbered 'class 0' and on")
    return None


def names_and_colors(
    count: int, classes: Sequence[str] | None, palette: Sequence[Color] | None
) -> tuple[Sequence[str], Sequence[Color]]:
    """Class names and palette; what is None is guessed from the number of classes, or generated."""
    spec = guess_by_class_count(count) if classes is None else None
    if classes is None:
        classes = spec.classes if spec is not None else numbered_names(count)
    if palette is None:
        palette = spec.palette if spec is not None else distinct_colors(count)
    return classes, palette


def guess_dataset(folder: Path | str) -> DataConfig:
    """Settings for a dataset folder, or its address, that no config describes.

    Folders and label endings identify a dataset of the catalogue.  A class list identifies the
    dataset that has these classes, or a custom one.

    Raises:
        DataError: nothing fits, or more than one dataset does.
    """
    root = local_folder(folder)
    if not root.is_dir():
        raise DataError(
            root,
            found="no such folder",
            expected="the folder that holds a dataset's images and labels",
            remedy="check the path",
        )
    fitting = [spec for spec in map(get_spec, list_specs()) if _fits(spec, root)]
    class_file, folders = root / CLASS_LIST, find_folders(root)
    names = read_class_list(class_file) if class_file.is_file() else None
    if names is not None:
        same = [spec.name for spec in fitting if spec.classes == names]
        if len(same) == 1:
            return DataConfig(dataset=same[0], root=str(folder))
        if folders is not None or (root / DataConfig().images).is_dir():
            return DataConfig(dataset="custom", root=str(folder))
    else:
        _refuse_other_annotations(root, folders)
    there = {spec.name for spec in fitting}
    guessed = [
        spec.name
        for spec in fitting
        if not spec.known_by_class_list and spec.shares_folders_of not in there
    ]
    if len(guessed) == 1:
        return DataConfig(dataset=guessed[0], root=str(folder))
    if not guessed:
        refuse_known_formats(root)
    refuse_misplaced_root(DataConfig(dataset="custom"), root)
    survey = None if guessed else survey_folder(root, names)
    if survey is not None:
        raise survey.error(root)
    if guessed:
        found = f"the layouts of {', '.join(guessed)}"
    else:
        inside = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        found = f"it holds {inside}"
    raise DataError(
        root,
        found=found,
        expected=f"the layout of one dataset of the catalogue, or a custom one with {CLASS_LIST}",
        remedy="name the dataset (--dataset); or put label maps beside the images, named like "
        f"them, and write the class names into {class_file}, one a line in id order",
    )


def _refuse_other_annotations(root: Path, folders: tuple[str, str] | None) -> None:
    """Name the conversion that a folder needs, where it holds another tool's annotations.

    Raises:
        DataError: color masks of CVAT, a dataset as it is downloaded, or LabelMe files beside
            their images.
    """
    from cgrseg.data.convert.color_masks import COLOR_TABLE

    table = root / COLOR_TABLE
    raw = [each for name in list_specs() if (each := get_spec(name).raw_download) is not None]
    found, command = "", ""
    if folders is not None and table.is_file():
        images, masks = (shlex.quote(str(root / name)) for name in folders)
        found = f"color masks with {COLOR_TABLE}, as CVAT exports them"
        command = f"cgrseg data convert rgb {images} {masks} OUT --colors {shlex.quote(str(table))}"
    elif here := [each for each in raw if all(any(root.glob(sign)) for sign in each.signs)]:
        found, command = here[0].found, here[0].command.format(root=shlex.quote(str(root)))
    elif folders is None:
        annotated = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        beside = next((folder for folder in annotated if _holds_labelme(folder)), None)
        if beside is not None:
            found = f"JSON files beside their images in {beside}, as LabelMe writes them"
            command = f"cgrseg data convert labelme {shlex.quote(str(beside))} OUT"
    if command:
        raise DataError(root, found=found, expected="label maps of class ids", remedy=command)


def refuse_known_formats(root: Path) -> None:
    """Name the format of a file, of a folder, or of a file in it, that can be converted.

    Raises:
        DataError: a format that :mod:`cgrseg.data.convert.formats` recognizes.
    """
    from cgrseg.data.convert.format import Argument, options_of
    from cgrseg.data.convert.formats import formats, recognize  # many modules, few commands need it

    endings = (".json", ".xml", ".yaml", ".yml")
    inside = sorted(root.iterdir()) if root.is_dir() else []
    files = [path for path in inside if path.suffix.lower() in endings]
    for source in [root, *files[:_FILES_TRIED]]:
        for name, reason in recognize(source).items():
            given = options_of(formats()[name]).items()
            words = [form.name or field for field, (_, form) in given if type(form) is Argument]
            places = " ".join(word.upper() for word in words[1:])
            raise DataError(
                source,
                found=f"the format {name} (by {reason})",
                expected="label maps of class ids",
                remedy=f"cgrseg data convert {name} {shlex.quote(str(source))} {places}",
            )


def _holds_labelme(folder: Path) -> bool:
    stems = {path.stem for path in folder.glob("*.json")}
    return bool(stems) and any(
        path.stem in stems and path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()
    )


def _fits(spec: DatasetSpec, root: Path) -> bool:
    """Whether a split of the dataset has its image folder, and label files, below `root`."""
    endings = [suffix for suffix, _ in spec.encodings]
    return any(
        cut_suffix(name, endings)
        for layout in spec.splits.values()
        if layout.labels is not None and (root / layout.images).is_dir()
        for name, _ in visible_files(root / layout.labels)
    )
