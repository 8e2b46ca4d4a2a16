"""Unpacking archives that nobody has checked: files and folders below one folder, nothing else."""

from __future__ import annotations

import contextlib
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cgrseg.data.convert.image_names import named_inside, place_image
from cgrseg.datasets.spec import Archive
from cgrseg.errors import DataError, EnvironmentProblem
from cgrseg.files import explained, make_folder
from cgrseg.input_files import open_input
from cgrseg.progress import Progress

# Images hardly shrink: an archive that grows more than this is no dataset.
_LARGEST_RATIO = 50
_ALWAYS_ALLOWED = 64 << 20  # bytes
_MOST_MEMBERS = 1_000_000
_KEPT_FREE = 256 << 20  # bytes
_BLOCK = 1 << 20
_ENDINGS = (".zip", ".tar")
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error,
    NotImplementedError, ValueError, IndexError, OSError,
)  # fmt: skip


class Damaged(DataError):
    """An archive that is not whole, or not the published one; another download may help."""


@dataclass(frozen=True)
class _Member:
    """An entry of an archive.

    Attributes:
        name: path as the archive has it.
        size: bytes after unpacking, as the archive says.
        refused: why it is never unpacked, e.g. "a symlink"; empty: a file or a folder.
        stream: its content; None: a folder, or refused.
    """

    name: str
    size: int
    refused: str
    stream: IO[bytes] | None


def unpack(path: Path, archive: Archive, folder: Path, progress: Progress | None = None) -> None:
    """Unpack the parts of an archive that belong to its dataset.

    Args:
        path: the archive.
        archive: its parts and their places.
        folder: empty folder, below which everything is written.
        progress: called with megabytes of the archive, done and in all.

    Raises:
        Damaged: it cannot be read to its end, by its own checksums.
        DataError: a path that leads out of the folder, a link or a device, two files of one name,
            or far more content than an archive of this size can have; or none of the parts.
        EnvironmentProblem: the content does not fit on the disk.
    """
    if not archive.name.endswith(_ENDINGS):
        place_image(path, folder / archive.parts[archive.name])
        return
    packed = path.stat().st_size
    free = shutil.disk_usage(folder).free - _KEPT_FREE
    left = _LARGEST_RATIO * packed + _ALWAYS_ALLOWED
    found = False
    with open_input(path) as opened:
        for number, member in enumerate(_reading(path, archive, opened)):
            place = _place(path, member, archive.parts)
            left, free = left - member.size, free - member.size
            if left < 0 or number == _MOST_MEMBERS:
                raise _unsafe(path, member.name, "the content is far larger than the archive")
            if place is None:
                continue
            if member.refused:
                raise _unsafe(path, member.name, f"it is {member.refused}")
            found = True
            if free < 0:
                raise EnvironmentProblem(
                    folder.parent,
                    found=f"the disk is too small for the content of {path.name}",
                    expected=f"room for it, and {_KEPT_FREE >> 20} MB free",
                    remedy="free some space, or choose another folder",
                )
            _write(path, archive, member, folder / place)
            if progress is not None:
                progress(min(opened.tell(), packed) >> 20, packed >> 20)
    if not found:
        raise Damaged(
            path,
            found=f"nothing of {', '.join(archive.parts)} is in it",
            expected=f"the published {archive.name}",
            remedy="give the published file",
        )


def _reading(path: Path, archive: Archive, opened: IO[bytes]) -> Iterator[_Member]:
    """Entries of an archive in its order."""
    members = (_zip_members if archive.name.endswith(".zip") else _tar_members)(opened)
    while True:
        with _explained_damage(path, archive):
            member = next(members, None)
        if member is None:
            return
        yield member


def _zip_members(opened: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(opened) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            usual = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            refused = "" if usual else "a symlink" if kind == stat.S_IFLNK else "a special file"
            refused = "encrypted" if info.flag_bits & 1 else refused
            if refused or info.is_dir():
                yield _Member(info.filename, info.file_size, refused, None)
            else:
                with archive.open(info) as stream:
                    yield _Member(info.filename, info.file_size, "", stream)


def _tar_members(opened: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=opened, mode="r:") as archive:
        while (info := archive.next()) is not None:
            refused = "" if info.isdir() or info.isreg() else "a link or a device"
            refused = "a sparse file" if info.issparse() else refused
            stream = archive.extractfile(info) if info.isreg() and not refused else None
            yield _Member(info.name, info.size, refused, stream)


def _place(path: Path, member: _Member, parts: Mapping[str, str]) -> str | None:
    """Path of an entry below the folder of the result; None: it is not needed.

    Raises:
        DataError: a path that leads out of the folder.
    """
    try:
        plain = named_inside(Path(), member.name.rstrip("/")).parts
        if ".." in plain:
            raise ValueError(f"the path {member.name!r} leads to a folder above")
    except ValueError as error:
        raise _unsafe(path, member.name, str(error)) from error
    for start in (0, 1):
        for part, place in parts.items():
            wanted = PurePosixPath(part).parts
            if plain[start : start + len(wanted)] == wanted:
                return str(Path(place, *plain[start + len(wanted) :]))
    return None


def _write(path: Path, archive: Archive, member: _Member, target: Path) -> None:
    try:
        if member.stream is None:
            make_folder(target)
            return
        make_folder(target.parent)
        with explained(target):
            written = target.open("xb")
    except EnvironmentProblem as error:
        if isinstance(error.__cause__, (FileExistsError, NotADirectoryError)):
            raise _unsafe(path, member.name, "two entries have this name") from error
        raise
    with written:
        while True:
            with _explained_damage(path, archive):
                block = member.stream.read(_BLOCK)
            if not block:
                return
            with explained(target):
                written.write(block)


@contextlib.contextmanager
def _explained_damage(path: Path, archive: Archive) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise Damaged(
            path,
            found=f"it is damaged or not whole ({error or type(error).__name__})",
            expected=f"the published {archive.name}",
            remedy="download it again",
        ) from error


def _unsafe(path: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{path}, entry {name[:200]!r}",
        found=reason,
        expected="files and folders below the folder of the dataset, about as large as the archive",
        remedy="do not use this archive; download the published one",
    )
