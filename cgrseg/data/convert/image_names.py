"""Images by name: find them, place them, and read the lists that name them."""

from __future__ import annotations

import filecmp
import io
import os
import re
import shutil
from pathlib import Path
from typing import Literal

from cgrseg.class_names import read_lines
from cgrseg.data.file_index import plain_form, visible_files
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.errors import DataError, option
from cgrseg.files import atomic_write, make_folder, partial_folder
from cgrseg.input_files import open_input, read_input

ImageMode = Literal["link", "copy"]

_LONGEST_NAME = 255


def named_inside(folder: Path, name: str) -> Path:
    """Path of the file below `folder` that an annotation file names.

    An annotation file must not choose which files outside the folder are opened or linked.

    Args:
        folder: folder that the name is relative to.
        name: path with slashes or backslashes.

    Raises:
        ValueError: an empty or absolute name, one that leads out of the folder, or one that no
            file can have.
    """
    plain = name.replace("\\", "/")
    depth = 0
    for part in plain.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise ValueError(f"the path {name!r} leads out of the folder {folder}")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        raise ValueError(f"the path {name!r} is absolute, not relative to {folder}")
    stem = plain.rpartition("/")[2]
    if stem in ("", ".", "..") or "\0" in plain:
        raise ValueError(f"{name!r} is not a file name")
    if len(os.fsencode(stem)) > _LONGEST_NAME:  # a lone surrogate is a ValueError here
        raise ValueError(f"the file name {name[:40]!r}... has more than {_LONGEST_NAME} bytes")
    return folder / plain


def same_content(one: Path | bytes, other: Path) -> bool:
    """Whether two existing files are one, or hold the same bytes."""
    if isinstance(one, bytes):
        return one == read_input(other)
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)


def place_image(
    source: Path | bytes, target: Path, mode: ImageMode = "link", *, replace: bool = False
) -> None:
    """Place an image at `target`, whole or not at all.

    Args:
        source: existing image, or the content of one.
        target: its new path; an identical file there is left alone.
        mode: 'link' makes a hard link (no disk space; a copy where the file system has no
            links), 'copy' an independent file.
        replace: replace another image at the target.

    Raises:
        DataError: the source cannot be read, or another image is at the target.
        EnvironmentProblem: the target cannot be written.
    """
    if target.exists():
        if same_content(source, target):
            return
        if not replace:
            raise DataError(
                target,
                found="another image than "
                + (f"{source}" if isinstance(source, Path) else "the one in the source now"),
                expected="that image, or nothing yet",
                remedy=f"choose another output folder, or replace it with {option('--overwrite')}",
            )
    make_folder(target.parent)
    if isinstance(source, Path) and mode == "link" and _hard_link(source, target):
        return
    try:
        stream = open_input(source) if isinstance(source, Path) else io.BytesIO(source)
    except OSError as error:
        raise DataError(
            source,
            found=f"it cannot be read ({error.strerror})",
            expected="an image",
            remedy="check the path and its permissions",
        ) from error
    with stream, atomic_write(target) as copy:
        shutil.copyfileobj(stream, copy)


def _hard_link(source: Path, target: Path) -> bool:
    """Hard-link beside the target, then rename; False where links are impossible."""
    try:
        with partial_folder(target.parent, "link") as folder:
            link = folder / target.name
            # A link to a symbolic link would lead nowhere from its new folder.
            os.link(source.resolve(), link)
            os.replace(link, target)
    except OSError:
        return False
    return True


def index_images(folder: Path) -> dict[str, Path]:
    """Images directly in `folder`; where there are none, those in its subfolders.

    Returns:
        Path below `folder` without the suffix, in NFC and with `/`, to the file.

    Raises:
        DataError: no such folder, no images, or one stem with two suffixes.
    """
    if not folder.is_dir():
        raise DataError(
            folder,
            found="no such folder",
            expected="a folder of images",
            remedy="check the path",
        )
    below = [each for each in visible_files(folder) if each[1].suffix.lower() in IMAGE_SUFFIXES]
    inside = [each for each in below if "/" not in each[0]]
    found: dict[str, Path] = {}
    for name, path in inside or below:
        stem = plain_form(name.removesuffix(path.suffix))
        if stem in found:
            raise DataError(
                path,
                found=f"the same name as {found[stem].name} but for the suffix",
                expected="one image per name: image and label are paired by it",
                remedy="rename or remove one of the two",
            )
        found[stem] = path
    if not found:
        raise DataError(
            folder,
            found="no images",
            expected=f"files ending in one of {', '.join(IMAGE_SUFFIXES)}",
            remedy="check the path",
        )
    return found


def find_file(path: Path) -> Path:
    """The file of this path, in any form of Unicode; the path itself where there is none."""
    if not path.is_file() and path.parent.is_dir():
        wanted = plain_form(path.name)
        if wanted != path.name or not wanted.isascii():
            for other in path.parent.iterdir():
                if plain_form(other.name) == wanted:
                    return other
    return path


def read_stems(path: Path) -> list[str]:
    """Image stems in a split list, in order, without repeats.

    Raises:
        DataError: unreadable, empty, or a line that is no plain file stem.
    """
    lines = read_lines(
        path,
        what="the list of the split",
        expected="a text file with one image stem a line",
        remedy="check the path",
    )
    stems: dict[str, None] = {}
    for number, stem in enumerate(lines, start=1):
        if not stem:
            continue
        if "/" in stem or "\\" in stem or stem in (".", ".."):
            raise DataError(
                f"{path}, line {number}",
                found=repr(stem),
                expected="a file stem without folders",
                remedy="remove the folder part",
            )
        stems[stem] = None
    if not stems:
        raise DataError(
            path,
            found="an empty list",
            expected="one image stem a line",
            remedy="check that this is the right file",
        )
    return list(stems)
