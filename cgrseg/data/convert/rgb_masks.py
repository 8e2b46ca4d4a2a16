"""RGB masks, where each class has a colour, to label PNGs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgrseg.class_names import check_class_names, clean_name, is_comment, unescaped
from cgrseg.data.convert.custom import CustomLayout, refuse_unused_ignored, settle_classes
from cgrseg.data.convert.place import ImageMode, index_images
from cgrseg.data.convert.runner import (
    ConversionReport,
    Failure,
    Task,
    locking_output,
    run_conversion,
)
from cgrseg.data.file_index import plain_form
from cgrseg.data.image_files import read_image
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError, explain, option
from cgrseg.input_files import read_input_text
from cgrseg.progress import Progress

Colour = tuple[int, int, int]

_LOSSY = (".jpg", ".jpeg", ".webp")
_SHOWN_COLOURS = 40
# Commas and runs of blanks inside a name are kept; those around it separate.
_GAP, _RGB = r"[\s,]+", r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)"
_NAME_FIRST = re.compile(rf"[\s,]*(?P<name>[^\s,].*?){_GAP}{_RGB}[\s,]*")
_NAME_LAST = re.compile(rf"[\s,]*{_RGB}{_GAP}(?P<name>[^\s,].*?)[\s,]*")
# CVAT's labelmap.txt: name:R,G,B:parts:actions
_CVAT = re.compile(rf"\s*(?P<name>\S.*?)\s*:\s*{_RGB}\s*(:.*)?")


@dataclass(frozen=True)
class ColourTable:
    """Colours as one number (R * 65536 + G * 256 + B), ascending, and their label values."""

    codes: tuple[int, ...]
    values: tuple[int, ...]


def read_colour_table(path: Path) -> dict[Colour, str]:
    """Colour to class name, in the order of the file.

    Text files have one class a line, `name R G B` or `R G B name`, separated by
    spaces, tabs or commas; a header line `name,r,g,b` is skipped.  CVAT's `labelmap.txt` has
    lines `name:R,G,B:parts:actions`.  JSON files hold
    {"name": [R, G, B]}.  A class may have several colours, a colour one class.

    Raises:
        DataError: unreadable, a line that is neither, or a colour of two classes.
    """
    try:
        text = read_input_text(path, "utf-8-sig")
        pairs = _from_json(text) if path.suffix.lower() == ".json" else _from_lines(text)
        table: dict[Colour, str] = {}
        for name, colour in pairs:
            if any(not 0 <= channel <= 255 for channel in colour):
                raise ValueError(f"the colour of {name!r} is {colour}, outside 0..255")
            if table.setdefault(colour, name) != name:
                raise ValueError(f"{table[colour]!r} and {name!r} share the colour {colour}")
        if not table:
            raise ValueError("it names no class")
        check_class_names(dict.fromkeys(table.values()), path, remedy="correct the file")
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            path,
            found=f"it cannot be used ({getattr(error, 'strerror', None) or error})",
            expected="one class a line, as in 'road 128 64 128', or JSON "
            '{"road": [128, 64, 128]}',
            remedy="correct the file",
        ) from error
    return table


def _from_json(text: str) -> list[tuple[str, Colour]]:
    pairs = []
    # Pairs: a name with several colors stands there several times, and a dictionary keeps one.
    for name, colour in json.loads(text, object_pairs_hook=list):
        red, green, blue = (int(channel) for channel in colour)
        pairs.append((clean_name(name), (red, green, blue)))
    return pairs


def _from_lines(text: str) -> list[tuple[str, Colour]]:
    pairs: list[tuple[str, Colour]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        if (
            not words
            or is_comment(line)
            or [word.lower() for word in words[-3:]] == ["r", "g", "b"]
        ):
            continue
        found = _CVAT.fullmatch(line) or _NAME_FIRST.fullmatch(line) or _NAME_LAST.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} reads {line.strip()!r}")
        red, green, blue = (int(found[channel]) for channel in "rgb")
        pairs.append((clean_name(unescaped(clean_name(found["name"]))), (red, green, blue)))
    return pairs


def colour_codes(mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (H, W) int32, one number per colour."""
    wide = mask.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def draw_label(task: Task) -> np.ndarray:
    """The label map (H, W) uint8 of one mask.

    Raises:
        DataError: a colour that belongs to no class; the message names it.
    """
    table: ColourTable = task.content
    codes = colour_codes(_read_mask(task.source))
    known = np.asarray(table.codes, dtype=np.int32)
    position = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    strange = known[position] != codes
    if strange.any():
        raise _unknown_colours(task.source, codes[strange], codes.size, known)
    return np.asarray(table.values, dtype=np.uint8)[position]


def _read_mask(path: Path) -> np.ndarray:
    if path.suffix.lower() in _LOSSY:
        raise DataError(
            path,
            found=f"a mask in the lossy format {path.suffix}",
            expected="a lossless file (PNG): lossy ones change the colours along every border",
            remedy="export the masks again as PNG",
        )
    return read_image(path)


def _unknown_colours(path: Path, codes: np.ndarray, pixels: int, known: np.ndarray) -> DataError:
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts)[:5]
    shown = ", ".join(f"{_rgb(int(values[k]))} ({counts[k] / pixels:.2%})" for k in order)
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    remedy = "add the colour to the colour table, or correct the mask"
    if len(values) > 64:
        remedy = "export the masks without smoothing and never through JPEG"
    elif all(len(set(_rgb(int(v)))) == 1 for v in values):
        remedy += "; grey values only: if these are class ids, no conversion is needed"
    nearest = min(known, key=lambda code: _distance(int(code), int(values[order[0]])))
    return DataError(
        path,
        found=f"colours of no class: {shown}{more}; the nearest known one is {_rgb(int(nearest))}",
        expected=f"only the {len(known)} colours of the table",
        remedy=remedy,
    )


def _rgb(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _distance(one: int, other: int) -> int:
    return sum((a - b) ** 2 for a, b in zip(_rgb(one), _rgb(other), strict=True))


def list_colours(
    masks: Path | str, *, workers: int | None = None, progress: Progress | None = None
) -> dict[Colour, float]:
    """The colours that a folder of masks uses, with their shares of all pixels.

    Raises:
        DataError: no such folder, or a mask that cannot be read.
    """
    counts: dict[int, int] = {}
    paths = list(index_images(Path(masks)).values())
    for one in run_parallel(_count_colours, paths, workers=workers, progress=progress):
        for code, count in one.items():
            counts[code] = counts.get(code, 0) + count
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {_rgb(code): count / total for code, count in ordered}


def _count_colours(path: Path) -> dict[int, int]:
    values, counts = np.unique(colour_codes(_read_mask(path)), return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


@locking_output
def convert_rgb_masks(
    images: Path | str,
    masks: Path | str,
    out: Path | str,
    *,
    colours: Path | str | Mapping[Colour, str] | None,
    mask_suffix: str = "",
    split: str | None = None,
    ignored: Sequence[str] = (),
    image_mode: ImageMode = "link",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert RGB masks to the custom layout.

    Args:
        images: folder of images.
        masks: folder of masks with the images' names.
        out: folder that gets images, annotations and classes.txt.
        colours: colour table (:func:`read_colour_table`), or colour to class name; ids
            follow its order.  None: an error that lists the colours found.
        mask_suffix: what mask names have after the image's name, such as '_L'.
        split: name of the split's folders; None: no split folders.
        ignored: names whose pixels become 255.
        image_mode: hard links ('link') or independent files ('copy').
        workers: processes; None chooses by the amount of work.
        overwrite: make finished files anew too.
        progress: called with (done, total).

    Raises:
        DataError: no colour table, nothing to convert, or contradicting class names.
        EnvironmentProblem: full disk and the like.
    """
    layout = CustomLayout(Path(out), split)
    if colours is None:
        raise _no_colour_table(Path(masks), list_colours(masks, workers=workers))
    named = dict(colours) if isinstance(colours, Mapping) else read_colour_table(Path(colours))
    named = {colour: clean_name(name) for colour, name in named.items()}
    ignored = [clean_name(name) for name in ignored]
    where = "the colour table" if isinstance(colours, Mapping) else colours
    refuse_unused_ignored(where, ignored, list(dict.fromkeys(named.values())))
    wanted = list(dict.fromkeys(name for name in named.values() if name not in ignored))
    table = settle_classes(layout, given=wanted, found=(), ignored=ignored)
    report = ConversionReport("rgb", layout.root, table.classes)
    ordered = sorted(((r << 16 | g << 8 | b), name) for (r, g, b), name in named.items())
    content = ColourTable(
        tuple(code for code, _ in ordered), tuple(table.value(name) for _, name in ordered)
    )
    all_images, all_masks = index_images(Path(images)), index_images(Path(masks))
    tasks = []
    for stem, mask in all_masks.items():
        image = all_images.get(stem.removesuffix(mask_suffix))
        if image is None or not stem.endswith(mask_suffix):
            report.failures.append(_unpaired(mask, Path(images), "image"))
            continue
        tasks.append(
            Task(
                source=mask,
                label=layout.labels / f"{image.stem}.png",
                inputs=(mask,),
                image=image,
                image_target=layout.images / image.name,
                content=content,
            )
        )
    for stem in sorted(set(all_images) - {plain_form(task.label.stem) for task in tasks}):
        report.failures.append(_unpaired(all_images[stem], Path(masks), "mask"))
    return run_conversion(
        report,
        tasks,
        draw_label,
        record_folder=layout.labels,
        class_file=layout.class_file,
        settings={
            "classes": table.classes,
            "colours": {
                str(code): value for code, value in zip(content.codes, content.values, strict=True)
            },
        },
        palette=_palette(named, table.classes),
        image_mode=image_mode,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def _palette(named: Mapping[Colour, str], classes: Sequence[str]) -> list[Colour]:
    """Each class's first colour, so that the label PNGs look like the masks."""
    return [next(c for c, name in named.items() if name == wanted) for wanted in classes]


def _no_colour_table(masks: Path, found: Mapping[Colour, float]) -> DataError:
    shown = list(found.items())[:_SHOWN_COLOURS]
    lines = "".join(f"\n    {r} {g} {b}   {share:.2%}" for (r, g, b), share in shown)
    more = f"\n    and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    remedy = (
        "write a text file of lines such as 'road 128 64 128', and give it with "
        f"{option('--colors')}"
    )
    if len(found) > 256:
        remedy = "export the masks without smoothing and never through JPEG; then " + remedy
    return DataError(
        masks,
        found=f"{len(found)} colours, and no table that names them:{lines}{more}",
        expected="a class name for each colour",
        remedy=remedy,
    )


def _unpaired(path: Path, folder: Path, what: str) -> Failure:
    return Failure(
        str(path),
        explain(
            path,
            found=f"no {what} of this name in {folder}",
            expected="one mask for each image",
            remedy=f"add the {what}, or remove the file; names that differ at their end: "
            "--mask-suffix",
        ),
    )
