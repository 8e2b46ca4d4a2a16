"""Files at addresses of any file system that fsspec knows: s3://, gs://, hf://, zip://, ....

fsspec is a dependency of PyTorch; the packages of single protocols (s3fs, gcsfs) are installed by
whoever needs them, and read their credentials and endpoints from their own environment variables
and files.  Temporary errors are tried again after a pause.

Images are read at their addresses; a data set, which a training reads again and again, is copied
into the cache first (:func:`local_folder`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import posixpath
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cgrseg import downloading
from cgrseg.downloading import BUSY, TRIES
from cgrseg.errors import (
    MALFORMED,
    CGRSegError,
    ConfigError,
    DataError,
    hidden_secrets,
    refuse_secrets,
)
from cgrseg.extras import require
from cgrseg.files import atomic_path, atomic_write_text, cache_folder, explained, make_folder
from cgrseg.input_files import read_input_text
from cgrseg.progress import shown_progress

_LOG = logging.getLogger("cgrseg.addresses")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+(://|::.*://)", re.IGNORECASE)
_WEB = ("http", "https")
_LASTING = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(ValueError, TypeError, LookupError, zipfile.BadZipFile, tarfile.TarError),
)
_REFUSED = (401, 403)
_Result = TypeVar("_Result")


@dataclass(frozen=True, order=True)
class Address:
    """Address of a file, a folder or a pattern; its text hides user names, passwords and queries.

    Attributes:
        url: as fsspec takes it, for example `s3://bucket/a.jpg` or `zip://a.jpg::s3://b/c.zip`.
    """

    url: str = field(repr=False)

    @classmethod
    def of(cls, source: object) -> Address | None:
        """The address that a source is; None for everything else, such as a path."""
        if isinstance(source, Address):
            return source
        return cls(source) if isinstance(source, str) and _ADDRESS.match(source) else None

    def __str__(self) -> str:
        return "::".join(map(hidden_secrets, self.url.split("::")))

    def hidden_in(self, text: str) -> str:
        """A text of another program without the secrets of this address, with or without it."""
        for link in self.url.split("::"):
            user, mark, _ = link.partition("://")[2].partition("/")[0].rpartition("@")
            text = text.replace(user + mark, "") if user else text
        return hidden_secrets(text)

    @cached_property
    def _chain(self) -> tuple[list[str], str, str, list[str]]:
        """Links before the one with the path, its protocol, the path, links after it."""
        links = self.url.split("::")
        place = next(number for number, link in enumerate(links) if "://" in link)
        protocol, _, path = links[place].partition("://")
        return links[:place], protocol, path, links[place + 1 :]

    @property
    def path(self) -> PurePosixPath:
        """Path behind the protocol, in a bucket or an archive, or host and path."""
        _, protocol, path, _ = self._chain
        return PurePosixPath(path.partition("?")[0] if protocol in _WEB else path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    @property
    def stem(self) -> str:
        """Last part of the path without its suffix."""
        return self.path.stem

    @property
    def parent(self) -> Address:
        """The folder."""
        return self.beside(".")

    @property
    def suffix(self) -> str:
        """Suffix of the path, such as `.jpg`."""
        return self.path.suffix

    @property
    def is_pattern(self) -> bool:
        """Whether the path has wildcards."""
        _, protocol, path, _ = self._chain
        return any(sign in path for sign in ("*[" if protocol in _WEB else "*?["))

    def beside(self, name: str) -> Address:
        """Address of a file by its path from the folder of this one."""
        before, protocol, path, after = self._chain
        inner = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        return Address("::".join([*before, f"{protocol}://{inner}", *after]))

    def files(self) -> list[tuple[Address, str]]:
        """All files below a folder, or of a pattern, or the file itself, in the order of names.

        Returns:
            Each file, and its path relative to the folder, or its name.

        Raises:
            DataError: nothing there, access refused, an unknown protocol, or a lasting failure.
            EnvironmentProblem: the package of the protocol is missing.
        """
        return [(file, below) for file, (below, _) in sorted(self._listing().items())]

    def _listing(self) -> dict[Address, tuple[str, dict[str, Any]]]:
        """As :meth:`files`, with what the file system says of each file."""
        before, protocol, _, after = self._chain

        def found(system: Any, path: str) -> dict[Address, tuple[str, dict[str, Any]]]:
            system.invalidate_cache()
            tops = [path]
            if self.is_pattern:
                tops = sorted(system.glob(path))
            listed = {}
            for top in tops:
                for file, about in _files_below(system, top).items():
                    inner = file.partition("://")[2] or file
                    below = file.removeprefix(top).lstrip("/") or PurePosixPath(inner).name
                    if protocol in _WEB:
                        below = below.partition("?")[0]
                    if below and not below.endswith("/"):  # buckets mark folders by empty files
                        link = f"{protocol}://{inner}"
                        listed[Address("::".join([*before, link, *after]))] = below, about
            return listed

        return _tried(self, found, "files at this address")

    def read(self, what: str) -> bytes:
        """Content of the file; `what` says in messages what was expected.

        Raises:
            DataError: no such file, access refused, an unknown protocol, or a lasting failure.
            EnvironmentProblem: the package of the protocol is missing.
        """
        return _tried(self, lambda system, path: bytes(system.cat_file(path)), what)

    def fetch(self, target: Path) -> None:
        """Write the content of the file to a path; errors are those of :meth:`read`."""
        with explained(target), atomic_path(target) as fresh:
            _tried(self, lambda system, path: system.get_file(path, str(fresh)), "a file")


def leaves_the_folder(name: str) -> bool:
    """Whether a name that an archive or a server gives is not below its folder, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or "" in parts or ":" in parts[0] or "\\" in name


def _files_below(system: Any, top: str) -> dict[str, Any]:
    """All files below a folder, with their listing entries, or the file itself.

    The listing that file systems have by default leaves out folders that cannot be read.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    is_async = isinstance(system, AsyncFileSystem)
    own, usual = ("_find", AsyncFileSystem) if is_async else ("find", AbstractFileSystem)
    listed: dict[str, Any] = system.find(top, detail=True)
    if list(listed) == [top] or getattr(type(system), own) is not getattr(usual, own):
        return listed
    listed, folders = {}, [top]
    for folder in folders:
        for about in system.ls(folder, detail=True):
            name = about["name"]
            if about["type"] != "directory":
                listed[name] = about
            elif name.rstrip("/") != folder.rstrip("/"):
                folders.append(name)
    return listed


def local_folder(place: str | Path) -> Path:
    """A folder as it is, or the local copy of a folder at an address.

    The copy is `datasets/<digest of the address>/files/<name>` in the cache (`$CGRSEG_CACHE`).
    Each process brings it up to date once: files that are new, or whose size or version differs,
    are fetched, eight at a time, and fetched files that are gone are removed.  A copy that was
    stopped goes on; other processes wait for it.  A complete copy is used, with a warning, where
    the address cannot be listed.

    Raises:
        ConfigError: an address with a login or a query, or a pattern.
        DataError: nothing there, an archive itself, names that lead out of the folder, most files
            gone, or what :meth:`Address.read` raises.
        EnvironmentProblem: the copy cannot be written.
    """
    address = Address.of(place)
    if address is None:
        return Path(place)
    if address not in _copies:
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        refuse_secrets(address.url, "data.root")
        if address.is_pattern:
            raise ConfigError(
                "data.root",
                found=f"a pattern, {address}",
                expected="the address of one folder",
                remedy="name the folder",
            )
        key = hashlib.blake2b(address.url.encode(), digest_size=8).hexdigest()
        folder = make_folder(cache_folder() / "datasets" / key)
        with explained(folder), WeakFileLock(folder / "lock"):
            _copies[address] = _Copy(address, folder).up_to_date()
    return _copies[address]


_copies: dict[Address, Path] = {}
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
# What a file system may say of a version; what else it says may change without the file.
_VERSION = "size ETag etag md5Hash checksum blob_id CRC LastModified last_modified mtime created"
_FETCHERS = 8


class _Copy:
    """The copy of an address.

    Its index has a line of JSON per file, [name, version]; the version is null until the file is
    whole.  Files that are not in the index are of somebody else, and stay.
    """

    def __init__(self, address: Address, folder: Path) -> None:
        self.address, self._index = address, folder / "index"
        name = re.sub(r"[^\w.-]", "", address.name).strip(".") or "data"
        self.files = folder / "files" / name
        self._known: dict[str, list[str] | None] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in read_input_text(self._index).splitlines():
                with contextlib.suppress(*MALFORMED):  # the last line of a killed process
                    below, version = json.loads(line)
                    self._known[below] = version

    def up_to_date(self) -> Path:
        """Fetch what is missing, and remove what is gone."""
        try:
            there = self._listed()
        except DataError as error:
            if not self._known or not all(map(self._is_whole, self._known)):
                raise
            found = str(error).splitlines()[0]
            _LOG.warning("%s; the copy of an earlier command is used: %s", found, self.files)
            return self.files
        gone = [below for below in self._known if below not in there]
        if 2 * len(gone) > len(self._known):
            raise DataError(
                self.address,
                found=f"{len(gone)} of the {len(self._known)} files of the copy are gone",
                expected="the data set, whole",
                remedy=f"check the address; to accept it, remove the copy: {self.files.parent}",
            )
        for below in gone:
            (self.files / below).unlink(missing_ok=True)
        kept = [n for n in there if self._known.get(n) == there[n][1] and self._is_whole(n)]
        missing = [below for below in there if below not in set(kept)]
        lines = [[below, there[below][1]] for below in kept] + [[below, None] for below in missing]
        atomic_write_text(self._index, "".join(f"{json.dumps(line)}\n" for line in lines))
        if missing:
            self._fetch(missing, there)
        return self.files

    def _is_whole(self, below: str) -> bool:
        return self._known[below] is not None and (self.files / below).is_file()

    def _listed(self) -> dict[str, tuple[Address, list[str]]]:
        """Name to address and version of each file at the address."""
        there = {}
        for file, (below, about) in self.address._listing().items():
            if leaves_the_folder(below):
                raise ConfigError(
                    str(file),
                    found=f"the name {below!r}, which leads out of the folder of the copy",
                    expected="names below the given address",
                    remedy="do not trust this archive or bucket",
                )
            values = (about.get(name) for name in _VERSION.split())
            there[below] = file, [str(value) for value in values if value is not None]
        if list(there) == [self.address.name] and self.address.suffix.lower() in _ARCHIVES:
            raise ConfigError(
                str(self.address),
                found="an archive",
                expected="the folder of a data set",
                remedy=f"name the folder in it: zip://::{self.address} or tar://::{self.address}",
            )
        if not there:
            raise DataError(
                self.address,
                found="no files",
                expected="the folder of a data set",
                remedy="check the address, and that its server can be reached",
            )
        return there

    def _fetch(self, missing: list[str], there: dict[str, tuple[Address, list[str]]]) -> None:
        with (
            shown_progress(f"copying {self.address}", unit="files") as progress,
            self._index.open("a", encoding="utf-8") as noting,
            ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch") as pool,
        ):
            jobs = {}
            for below in missing:
                make_folder((self.files / below).parent)
                jobs[pool.submit(there[below][0].fetch, self.files / below)] = below
            try:
                for done, job in enumerate(as_completed(jobs), 1):
                    job.result()
                    noting.write(f"{json.dumps([jobs[job], there[jobs[job]][1]])}\n")
                    noting.flush()
                    if progress is not None:
                        progress(done, len(missing))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


_archives: dict[tuple[str, ...], Any] = {}
_ONE_AT_A_TIME = threading.RLock()


def _with_system(address: Address, work: Callable[[Any, str], _Result]) -> _Result:
    """Result of work on a file system and the path in it.

    The listing of an archive is read once per process, and one thread at a time uses archives:
    they have one position in their file.
    """
    from fsspec.core import url_to_fs

    before, protocol, path, after = address._chain
    if not after:
        return work(*url_to_fs(address.url))
    with _ONE_AT_A_TIME:
        key = (*before, protocol, *after)
        if key not in _archives:
            _archives[key] = url_to_fs(address.url)[0]
        return work(_archives[key], _archives[key]._strip_protocol(f"{protocol}://{path}"))


def _tried(address: Address, work: Callable[[Any, str], _Result], expected: str) -> _Result:
    """Result of work on a file system, after several tries where the failure is temporary."""
    for number in range(1, TRIES + 1):
        try:
            return _with_system(address, work)
        except ImportError as error:
            cause = error.__cause__
            require(getattr(cause, "name", None) or str(error), address)
            raise
        except CGRSegError:
            raise
        except Exception as error:  # each file system has error classes of its own
            status = getattr(error, "status", 0) or 0
            # The text of a web client's error holds the whole address.
            reason = f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
            if not status:
                reason = " ".join(str(error).split()) or type(error).__name__
            reason = address.hidden_in(reason)
            if isinstance(error, FileNotFoundError) or status in (404, 410):
                found, remedy = "there is no such file", "check the address; it may be removed"
            elif isinstance(error, PermissionError) or status in _REFUSED or _no_login(error):
                found = f"access is refused ({reason})"
                remedy = "check the login that the package of this protocol reads, and its rights"
            elif isinstance(error, _LASTING) or (400 <= status < 500 and status not in BUSY):
                found, remedy = f"it cannot be read ({reason})", "check the address"
            elif number == TRIES:
                found = f"it cannot be read, {TRIES} times in a row ({reason})"
                remedy = "check network and server, and run the same command again"
            else:
                _LOG.warning("%s: %s; trying again", address, reason)
                time.sleep(downloading.PAUSE * 2 ** (number - 1))
                continue
            raise DataError(address, found=found, expected=expected, remedy=remedy) from error
    raise AssertionError  # the last try returns or raises


def _no_login(error: Exception) -> bool:
    return "Credentials" in type(error).__name__
