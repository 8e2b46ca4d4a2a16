"""Survey of a folder of images and masks: where they lie, what the masks hold, what reads them.

`cgrseg data check` proposes from it the command that reads a folder as it lies.  Folders and names
are found by what fits together; the encoding is told by the values of up to 100 masks.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from cgrseg.class_names import CLASS_LIST
from cgrseg.config.schema import DataConfig
from cgrseg.data.file_index import cut_suffix, plain_form, visible_files
from cgrseg.data.folder_layout import IMAGE_SUFFIXES, LABEL_SUFFIXES, SPLIT_FOLDERS, find_layout
from cgrseg.data.image_files import is_jpeg, read_image
from cgrseg.data.label_files import ColorLabel, read_label
from cgrseg.data.parallel import run_parallel
from cgrseg.data.unpaired import is_addition
from cgrseg.datasets.findings import Finding, finding_from_error
from cgrseg.errors import DataError

READING = tuple(
    f"data.{name}"
    for name in (
        *("classes", "images", "labels", "image_name", "label_name"),
        *("label_threshold", "label_values", "zero_is_ignore"),
    )
)
"""Settings that a survey gives."""

_FILES, _FOLDERS, _DEPTH = 20_000, 24, 3  # more than this is not looked at
_READ = 100  # masks that are read
_NAMES_TRIED, _MASKS_TRIED = 10, 2_000  # images whose names are compared with those of masks
_MOST_VALUES = 32  # a mask of more values holds no class ids, unless they are 0, 1, 2, ...
_MOST_NAMES = 32  # a longer class list belongs into a file
_LARGEST_ID = 64  # scattered values below this are ids; above, gray levels for the eye
_ENDS = 16  # values of black and of white, after JPEG or a smooth resize
_AT_ENDS = 0.9  # smallest share of black and white pixels in a mask of two classes
_MIDDLE = slice(48, 208)  # gray values that only borders have in a mask of two classes
_PEAK = 0.3  # share of these in 9 neighboring values, from which they are a class
_GRAYS = 8  # number of gray values from which borders are smooth
_RARE = 0.002  # share of all pixels, below which the gray ones are no class
_COLORFUL = 24  # channels of a gray JPEG image differ less than this
_MASK_WORD = re.compile(
    r"mask|label|lbl|annot|ann_|ann$|seg|gt$|gt_|truth|target|matte", re.IGNORECASE
)


class NeedsSettings(DataError):
    """A folder of images and masks that the default settings do not read."""

    survey: Survey


@dataclass(frozen=True)
class ColorMasks:
    """Masks in color, to be converted to class ids.

    Attributes:
        images: folder of the images.
        masks: folder of the masks.
        split: split that they are; None: not split.
        suffix: ending of the masks' names after those of the images.
    """

    images: Path
    masks: Path
    split: str | None = None
    suffix: str = ""

    @property
    def command(self) -> str:
        """The command that converts them into OUT."""
        words = ["cgrseg", "data", "convert", "rgb", str(self.images), str(self.masks), "OUT"]
        for name, value in (("mask-suffix", self.suffix), ("split", self.split)):
            words += [f"--{name}", value] if value else []
        return shlex.join(words)


@dataclass
class Survey:
    """What a folder holds.

    Attributes:
        masks: what the masks hold, in words.
        settings: settings that read it, as KEY=VALUE; empty: its defaults do.
        alternative: another meaning of the same values in words, and the settings for it.
        conversions: what the masks need first, folder by folder; empty: nothing.
        reason: why no setting reads the masks, and what to do; empty: there is one.
        where: places and names of images and masks, in words.
    """

    masks: str
    settings: list[str] = field(default_factory=list)
    alternative: tuple[str, list[str]] | None = None
    conversions: list[ColorMasks] = field(default_factory=list)
    reason: str = ""
    where: str = ""

    @property
    def command(self) -> str:
        """The command that converts the masks; empty: they need none."""
        return " && ".join(each.command for each in self.conversions)

    def error(self, root: Path) -> NeedsSettings:
        """The message about a folder that cannot be read without settings: what to type."""
        class_file = root / CLASS_LIST
        write = f"write the class names into {class_file}, one a line in id order"
        named = any(text.startswith("data.classes=") for text in self.settings)
        expected, command = "the names of the classes", _check(root, self.settings)
        if self.reason or self.command:
            expected = "masks of class ids"
            remedy = self.reason or f"turn the colors into class ids:\n    {self.command}"
        elif named:
            remedy = f"put the names of your classes into this command:\n    {command}"
        elif class_file.is_file():
            expected = "settings that read them"
            remedy = f"check again with these settings:\n    {command}"
        else:
            remedy = f"{write}, and check again:\n    {command}"
        if self.alternative is not None:
            words, settings = self.alternative
            remedy += f"\n  {words}:\n    {_check(root, settings)}"
        if named:
            remedy += f"\n  or {write}"
        error = NeedsSettings(
            root,
            found=f"{self.where}; the masks hold {self.masks}",
            expected=expected,
            remedy=remedy,
        )
        error.survey = self
        return error


class _Names(NamedTuple):
    """Names of an image and of its mask; `{stem}` is what they have in common."""

    image: str = "{stem}"
    label: str = "{stem}"

    def label_of(self, image: str) -> str | None:
        """The name of an image's mask, with its folder; None: no name of an image."""
        before, _, after = self.image.partition("{stem}")
        folder, slash, last = image.rpartition("/")
        if not last.startswith(before) or not last.endswith(after):
            return None
        return (
            folder
            + slash
            + self.label.replace("{stem}", last[len(before) : len(last) - len(after)])
        )

    def settings(self) -> list[str]:
        """The settings that say so."""
        named = (("data.image_name", self.image), ("data.label_name", self.label))
        return [f"{key}={name}" for key, name in named if name != "{stem}"]


@dataclass(frozen=True)
class _Pairing:
    """Images and masks that belong together.

    Attributes:
        images: image folder below the root.
        labels: mask folder below the root.
        names: names of an image and of its mask.
        masks: the masks that have an image.
        missing: number of images without a mask.
    """

    images: str
    labels: str
    names: _Names
    masks: tuple[Path, ...]
    missing: int = 0


def survey_folder(root: Path, classes: Sequence[str] | None = None) -> Survey | None:
    """Look at the images and masks of a folder; None: there are no masks with images.

    Args:
        root: the folder.
        classes: its class names, where they are known.
    """
    files = _files_by_folder(root)
    places = _usual_places(root)
    usual = _usual_pairing(places, files)
    pairing = usual if usual is not None and not usual.missing else _best_pairing(files) or usual
    if pairing is None:
        return None
    as_usual = pairing is usual or places == [(pairing.images, pairing.labels)]
    settings = [] if as_usual else _folder_settings(root, pairing)
    settings += pairing.names.settings()
    where = f"images in {pairing.images}, masks in {pairing.labels}"
    if pairing.images == pairing.labels:
        where = "images and masks in one folder"
    if pairing.names != _Names():
        where += f", named like {pairing.masks[0].name}"
    survey = _survey_masks(root, pairing, classes, settings)
    survey.where = where
    survey.settings = [] if survey.conversions else [*settings, *survey.settings]
    if survey.alternative is not None:
        survey.alternative = survey.alternative[0], [*settings, *survey.alternative[1]]
    return survey


def _check(root: Path, settings: Sequence[str]) -> str:
    return shlex.join(["cgrseg", "data", "check", str(root), *settings])


# ---- Folders and names -------------------------------------------------------------------------

_Files = Mapping[str, Mapping[str, list[Path]]]  # folder to stem to the files of that stem


def _files_by_folder(root: Path) -> _Files:
    """Files of images and masks below each folder, subfolders included; `.` is the root."""
    endings = (*IMAGE_SUFFIXES, *LABEL_SUFFIXES)
    found: dict[str, dict[str, list[Path]]] = {}
    for name, path in itertools.islice(visible_files(root), _FILES):
        cut = cut_suffix(plain_form(name), endings)
        if cut is None:
            continue
        parts = PurePosixPath(cut[0]).parts
        for depth in range(min(len(parts), _DEPTH + 1)):
            folder = PurePosixPath(name).parts[:depth]
            stems = found.setdefault("/".join(folder) or ".", {})
            stems.setdefault("/".join(parts[depth:]), []).append(path)
    order = sorted(found, key=lambda name: (len(PurePosixPath(name).parts), name))
    return {name: found[name] for name in order[:_FOLDERS]}


def _usual_places(root: Path) -> list[tuple[str, str]]:
    """Folders of images and labels in which a custom dataset is looked for without settings."""
    layouts, _ = find_layout(DataConfig(dataset="custom", root=str(root)), root)
    return list(dict.fromkeys((each.images, each.labels or "") for each in layouts.values()))


def _usual_pairing(places: Iterable[tuple[str, str]], files: _Files) -> _Pairing | None:
    """The pairs of several folders of images and labels as one."""
    found = [
        pairing
        for images, labels in places
        if {images, labels} <= files.keys()
        if (pairing := _paired(files, images, labels, False)) is not None
    ]
    if not found or len({pairing.names for pairing in found}) != 1:
        return None
    images, labels = (
        " and ".join(dict.fromkeys(getattr(pairing, which) for pairing in found))
        for which in ("images", "labels")
    )
    masks = tuple(mask for pairing in found for mask in pairing.masks)
    missing = sum(pairing.missing for pairing in found)
    return _Pairing(images, labels, found[0].names, masks, missing)


def _best_pairing(files: _Files, *, changed: bool = False) -> _Pairing | None:
    """The two folders, or the one, in which most images have a mask.

    Args:
        files: files by folder.
        changed: names of masks may differ from those of images by more than an addition.
    """
    best: tuple[tuple[int, int], _Pairing] | None = None
    for images, labels in itertools.product(files, files):
        nested = images != labels and (
            labels == "."
            or images == "."
            or f"{labels}/".startswith(f"{images}/")
            or f"{images}/".startswith(f"{labels}/")
        )
        if nested or (pairing := _paired(files, images, labels, changed)) is None:
            continue
        score = len(pairing.masks), len(PurePosixPath(f"{images}/{labels}").parts)
        if (best is None or score > best[0]) and _are_masks(pairing):
            best = score, pairing
    if best is None and not changed:
        return _best_pairing(files, changed=True)
    return best and best[1]


def _paired(files: _Files, images: str, labels: str, changed: bool) -> _Pairing | None:
    """The pairs of two folders; None: there are none."""
    pictures, masks = files[images], files[labels]
    same = images == labels
    best: tuple[_Names, dict[str, str]] | None = None
    tried = _changed(pictures, masks) if changed else _added(pictures, masks)
    for candidates in [tried] if same else [{_Names()}, tried]:
        for names in sorted(candidates):
            if same and not (_MASK_WORD.search(names.label) and not _MASK_WORD.search(names.image)):
                continue
            labeled = {stem: names.label_of(stem) for stem in pictures}
            pairs = {stem: label for stem, label in labeled.items() if label and label in masks}
            if pairs and (best is None or len(pairs) > len(best[1])):
                best = names, pairs
        if best is not None:
            break
    if best is None:
        return None
    names, pairs = best
    missing = len(pictures.keys() - pairs - (set(pairs.values()) if same else set()))
    return _Pairing(images, labels, names, tuple(masks[k][0] for k in pairs.values()), missing)


def _added(pictures: Iterable[str], masks: Iterable[str]) -> set[_Names]:
    """Names of masks that are those of images with an addition: 0_mask."""
    return {
        _Names("{stem}", name.replace(last, "{stem}", 1))
        for last, name in _same_folder(pictures, masks)
        if last in name and is_addition(last, name)
    }


def _changed(pictures: Iterable[str], masks: Iterable[str]) -> set[_Names]:
    """Names of images and masks with one part in common: 0_sat and 0_mask, img_0 and mask_0."""
    found = set()
    for last, name in _same_folder(pictures, masks):
        start, end = _common(last, name), _common(last[::-1], name[::-1])
        if 0 < start < min(len(last), len(name)):
            found.add(_Names("{stem}" + last[start:], "{stem}" + name[start:]))
        if 0 < end < min(len(last), len(name)):
            found.add(_Names(last[:-end] + "{stem}", name[:-end] + "{stem}"))
    return found


def _common(one: str, other: str) -> int:
    """Length of the start that two names have in common, without separators at its end."""
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len("".join(letter for letter, _ in equal).rstrip("_-. "))


def _same_folder(pictures: Iterable[str], masks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Last parts of the names of a few images, each with those of the masks beside it."""
    for stem in itertools.islice(pictures, _NAMES_TRIED):
        folder, _, last = stem.rpartition("/")
        for other in itertools.islice(masks, _MASKS_TRIED):
            there, _, name = other.rpartition("/")
            if there == folder and name != last:
                yield last, name


def _are_masks(pairing: _Pairing) -> bool:
    """Whether the masks of a pairing are the masks, not the images."""
    images, labels = (PurePosixPath(each).parts for each in (pairing.images, pairing.labels))
    ours = " ".join([*(part for part in labels if part not in images), pairing.names.label])
    theirs = " ".join(part for part in images if part not in labels)
    hints = bool(_MASK_WORD.search(ours)) - bool(_MASK_WORD.search(theirs))
    if hints:
        return hints > 0
    try:
        pixels = read_image(pairing.masks[0])[::2, ::2].reshape(-1, 3)
    except DataError:
        return False
    return len(np.unique(pixels, axis=0)) <= 256


def _folder_settings(root: Path, pairing: _Pairing) -> list[str]:
    """Settings for two folders; for all splits where the name of one occurs in both."""
    images, labels = pairing.images, pairing.labels
    for word in SPLIT_FOLDERS["train"]:
        pattern = re.compile(rf"(?<![^\W_]){word}(?![^\W_])", re.IGNORECASE)
        one, other = pattern.search(images), pattern.search(labels)
        if one is None or other is None or one[0] != other[0]:
            continue
        templates = [pattern.sub("{split}", each, count=1) for each in (images, labels)]
        for split in (form(name) for name in SPLIT_FOLDERS["val"] for form in _FORMS):
            if all((root / each.replace("{split}", split)).is_dir() for each in templates):
                settings = [f"data.images={templates[0]}", f"data.labels={templates[1]}"]
                settings += [f"data.train_split={one[0]}"] * (one[0] != "train")
                return settings + [f"data.eval_split={split}"] * (split != "val")
    return [f"data.images={images}", f"data.labels={labels}"]


_FORMS = (str, str.capitalize, str.upper)


# ---- Encoding ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mask:
    """Values of one mask: pixels per value, or what it is instead."""

    pixels: np.ndarray | None
    jpeg: bool = False
    color: bool = False
    problem: Finding | None = None


def _read_mask(path: Path) -> _Mask:
    try:
        if is_jpeg(path):
            image = read_image(path)
            colorful = int(np.ptp(image, axis=2).max()) >= _COLORFUL
            return _Mask(np.bincount(image[..., 1].ravel(), minlength=256), True, colorful)
        return _Mask(np.bincount(read_label(path).ravel(), minlength=256))
    except ColorLabel:
        return _Mask(None, color=True)
    except DataError as error:
        return _Mask(None, problem=finding_from_error("label-unreadable", path, error))


def _survey_masks(
    root: Path, pairing: _Pairing, classes: Sequence[str] | None, settings: Sequence[str]
) -> Survey:
    chosen = pairing.masks[:: max(1, len(pairing.masks) // _READ)][:_READ]
    read = list(run_parallel(_read_mask, chosen, threads=True))
    problems = [mask.problem for mask in read if mask.problem is not None]
    if len(problems) == len(read):
        return Survey(
            f"no class ids: {problems[0].file}: {problems[0].message}", reason=problems[0].remedy
        )
    masks = [mask for mask in read if mask.problem is None]
    jpeg = any(mask.jpeg for mask in masks)
    if any(mask.color for mask in masks):
        if jpeg:
            return Survey(
                "colors, as JPEG",
                reason="JPEG changes the colors along every border, so they stand for classes no "
                "more: export the masks as PNG, then `cgrseg data convert rgb`; check that images "
                "and masks are not swapped",
            )
        return _survey_colors(root, pairing, settings)
    pixels = sum((mask.pixels for mask in masks if mask.pixels is not None), np.zeros(256, int))
    values = [int(value) for value in np.flatnonzero(pixels)]
    if _looks_binary(pixels, jpeg):
        words = "black and white" if len(values) == 2 else "black and white with gray borders"
        words += ", as JPEG" if jpeg else f" (0 and {values[-1]})"
        return Survey(words, [*_two_names(classes), "data.label_threshold=128"])
    if jpeg:
        return Survey(
            f"JPEG, with {len(values)} gray values that are not black and white alone",
            reason="JPEG changes values along every border, so class ids do not survive it: export "
            "the masks as PNG from the tool that made them; only masks of two classes, black and "
            "white, can be read from JPEG (data.label_threshold)",
        )
    return _survey_ids(values, classes)


def _looks_binary(pixels: np.ndarray, jpeg: bool) -> bool:
    """Whether pixels per value are those of a black and white mask, also with smooth borders."""
    values = np.flatnonzero(pixels)
    black, white, middle = pixels[:_ENDS].sum(), pixels[-_ENDS:].sum(), pixels[_MIDDLE]
    if values.tolist() == [0, 255]:
        return True
    if not black or not white or black + white < _AT_ENDS * pixels.sum():
        return False
    gray = values[(values > 0) & (values < 255)]
    if not jpeg and (len(gray) < _GRAYS or gray[-1] < 128):
        return False  # ids, or a few gray levels
    peak = np.convolve(middle, np.ones(9)).max()
    return bool(peak <= _PEAK * middle.sum() or middle.sum() < _RARE * pixels.sum())


def _survey_ids(values: Sequence[int], classes: Sequence[str] | None) -> Survey:
    ids = [value for value in values if value != 255]
    number = len(ids)
    also = " and 255, which is ignored" if 255 in values else ""
    if len(values) < 2:
        return Survey(
            f"nothing but the value {values[0]}",
            reason="check that these are the masks; a network needs two classes at least",
        )
    if ids == [0, 1]:
        return Survey(f"ids 0 and 1{also}", _two_names(classes))
    if ids == list(range(number)):
        survey = Survey(f"ids from 0 to {number - 1}{also}", _names(ids, classes))
        if classes is None or len(classes) == number - 1:
            shifted = [*_names(ids[1:], classes), "data.zero_is_ignore=true"]
            survey.alternative = "if 0 means unlabeled", shifted
        return survey
    if ids == list(range(1, number + 1)) and number > 1:
        settings = [*_names(ids, classes), "data.zero_is_ignore=true"]
        return Survey(f"ids from 1 to {number}{also}, without 0", settings)
    if len(values) > _MOST_VALUES:
        return Survey(
            f"{len(values)} scattered values from {values[0]} to {values[-1]}",
            reason="scattered values are not class ids: export class ids, not instance ids "
            "or gray images, and check that images and masks are not swapped",
        )
    # Values for the eye use 255 as a class; ids use it for pixels to ignore.
    named = ids if ids and ids[-1] < _LARGEST_ID else list(values)
    table = ",".join(f"{raw}:{new}" for new, raw in enumerate(named))
    return Survey(
        f"the values {', '.join(map(str, named))}{also if len(named) < len(values) else ''}",
        [*_names(named, classes), f"data.label_values={{{table}}}"],
    )


def _two_names(classes: Sequence[str] | None) -> list[str]:
    """`data.classes` for a background and one class; empty: the class list is right."""
    if classes is None:
        return ["data.classes=[background,object]"]
    return (
        ["data.classes=" + json.dumps(["background", *classes], ensure_ascii=False)]
        if len(classes) == 1
        else []
    )


def _names(values: Sequence[int], classes: Sequence[str] | None) -> list[str]:
    if classes is not None or len(values) > _MOST_NAMES:
        return []
    return [f"data.classes=[{','.join(f'class{value}' for value in values)}]"]


def _survey_colors(root: Path, pairing: _Pairing, settings: Sequence[str]) -> Survey:
    """The conversion of masks in color, split by split."""
    image, _, suffix = pairing.names.label.partition("{stem}")
    if image or pairing.names.image != "{stem}":
        return Survey(
            "colors",
            reason="name each mask like its image, or with an addition at the end, then turn the "
            "colors into class ids with `cgrseg data convert rgb`",
        )
    given = dict(text.removeprefix("data.").split("=", 1) for text in settings)
    config = DataConfig.model_validate({"dataset": "custom", "root": str(root), **given})
    layouts, _ = find_layout(config, root)
    splits: dict[tuple[Path, Path], str] = {}
    for split, layout in layouts.items():
        folders = root / layout.images, root / (layout.labels or "")
        if all(folder.is_dir() for folder in folders):
            splits.setdefault(folders, split)
    if not splits:
        return Survey("colors", reason="turn them into class ids with `cgrseg data convert rgb`")
    one = len(splits) == 1
    found = [ColorMasks(*each, None if one else name, suffix) for each, name in splits.items()]
    return Survey("colors", conversions=found)
