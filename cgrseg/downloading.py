"""Downloads over HTTP that go on where they stopped.

Python's own client does the work: it reads `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.  A partial
file has a note with its address and the server's mark of the version (ETag or Last-Modified), so
that two versions of a file are never joined.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cgrseg
from cgrseg.errors import MALFORMED, ConfigError, DataError
from cgrseg.files import atomic_write_text, explained
from cgrseg.input_files import open_input, read_input_text
from cgrseg.progress import Progress

_LOG = logging.getLogger("cgrseg.downloading")

ENDINGS = (".partial", ".partial.json")
"""Endings of an unfinished download and of its note."""
_PART = 1 << 20  # bytes
_MEGABYTE = 10**6
_SILENCE = 60.0  # seconds without a byte after which a connection counts as lost
TRIES = 5  # in a row without a byte
PAUSE = 1.0  # seconds before the second try; doubled each time
# The published sizes are rounded; a file of several times that size is another file.
_LARGEST = 3
BUSY = (408, 425, 429, 500, 502, 503, 504)
_LOST = (urllib.error.URLError, http.client.HTTPException, OSError)


class Unreachable(DataError):
    """An address from which the file cannot be had."""


@dataclass(frozen=True)
class _Version:
    """The version of a file at an address, as its server describes it.

    Attributes:
        address: as it was asked for.
        mark: strong ETag, else Last-Modified; empty: none.
        size: bytes; None: not stated.
    """

    address: str
    mark: str
    size: int | None


def checked_address(address: str, setting: str) -> str:
    """An address, percent-encoded.

    Raises:
        ConfigError: no address of a web server, or one with a user name or a password.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host = (parts.hostname or "").encode("idna").decode()
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:  # UnicodeError is one
        parts, host, port = urllib.parse.urlsplit(""), "", ""
    if not host or "@" in parts.netloc or any(each in host for each in " %<>"):
        raise ConfigError(
            setting,
            found="an address with a user name or a password"
            if "@" in parts.netloc
            else hidden_query(address),
            expected="http://HOST/PATH or https://HOST/PATH, without a user name or a password",
            remedy="give such an address, or download the file and give its path",
        )
    path, query = (urllib.parse.quote(each, safe="%/:=&?~+!$,;'@()*[]") for each in parts[2:4])
    host = f"[{host}]" if ":" in host else host
    return urllib.parse.urlunsplit((parts.scheme, f"{host}{port}", path, query, ""))


def hidden_query(address: str) -> str:
    """An address without its query and its user information, which may hold secrets."""
    plain = address.partition("#")[0].partition("?")[0]
    scheme, mark, rest = plain.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def download(
    address: str,
    target: Path,
    size: int,
    progress: Progress | None = None,
    *,
    authorization: str | None = None,
) -> None:
    """Download a file, or the rest of it.

    An unfinished file is `target` with the ending `.partial`, and stays after errors.

    Args:
        address: http or https.
        target: file to make; nothing is done where it exists.
        size: about, in bytes; 0: unknown.
        progress: called with (megabytes done, megabytes in all), 0 for an unknown size.
        authorization: header of that name; a server that the address redirects to does not get it.

    Raises:
        Unreachable: the server does not give the file, or gives another one.
        EnvironmentProblem: the file cannot be written.
    """
    partial, note = (target.with_name(target.name + ending) for ending in ENDINGS)
    tries = 0
    while not target.is_file():
        before = _length(partial)
        try:
            if _receive(address, partial, note, size, progress, authorization):
                with explained(target):
                    partial.replace(target)
                    note.unlink(missing_ok=True)
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code not in BUSY:
                raise _unreachable(
                    address, f"the server answers {error.code} {error.reason}"
                ) from error
            reason = f"the server answers {error.code} {error.reason}"
        except _LOST as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        tries = 1 if _length(partial) > before else tries + 1
        if tries == TRIES:
            raise _unreachable(address, f"{reason}, {TRIES} times in a row")
        _LOG.warning("%s: %s; trying again", hidden_query(address), reason)
        time.sleep(PAUSE * 2 ** (tries - 1))


def _receive(
    address: str,
    partial: Path,
    note: Path,
    size: int,
    progress: Progress | None,
    authorization: str | None,
) -> bool:
    """Receive what is missing, as far as the connection lasts; whether the file is complete."""
    done, known = _length(partial), _read_note(note)
    headers = {"User-Agent": f"cgrseg/{cgrseg.__version__}", "Accept-Encoding": "identity"}
    resumes = done > 0 and known is not None and known.address == address
    if resumes and known is not None:
        headers["Range"] = f"bytes={done}-"
        if known.mark:
            headers["If-Range"] = known.mark
    request = urllib.request.Request(address, headers=headers)
    if authorization is not None:
        request.add_unredirected_header("Authorization", authorization)
    try:
        answer = urllib.request.build_opener().open(request, timeout=_SILENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing is missing, or the file has become shorter.
        complete = known is not None and done == known.size
        if not complete:
            partial.unlink(missing_ok=True)
        return complete
    with answer:
        version, start = _version(address, answer.headers, answer.status)
        if start != (done if resumes else 0) or (start and not _same(version, known)):
            start = 0
            if answer.status == 206:  # a part of another version: ask for the whole
                partial.unlink(missing_ok=True)
                return False
        if size and (version.size or 0) > _LARGEST * size:
            raise _unreachable(
                address, f"its file has {version.size:,} bytes, where about {size:,} were expected"
            )
        with explained(partial):
            stream = partial.open("r+b" if start else "wb")
        with stream:
            if not start:
                atomic_write_text(note, json.dumps(asdict(version)))
            stream.seek(start)
            stream.truncate()
            done = start
            while part := answer.read(_PART):
                done += len(part)
                if size and done > _LARGEST * size:
                    raise _unreachable(
                        address,
                        f"its file has more than {_LARGEST} times the expected {size:,} bytes",
                    )
                with explained(partial):
                    stream.write(part)
                if progress is not None:
                    whole = max(version.size or 0, done if version.size else 0)
                    progress(done // _MEGABYTE, whole // _MEGABYTE)
    return version.size is None or done == version.size


def _version(address: str, headers: Mapping[str, Any], status: int) -> tuple[_Version, int]:
    """Version of the file in an answer, and the place of its first byte."""
    etag = headers.get("ETag") or ""
    mark = headers.get("Last-Modified") or "" if etag.startswith("W/") or not etag else etag
    length = headers.get("Content-Length")
    start, whole = 0, int(length) if length and length.isdigit() else None
    if status == 206:
        # bytes FIRST-LAST/WHOLE
        span, _, total = (headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        start = int(first) if first.isdigit() else -1
        whole = int(total) if total.isdigit() else None
    return _Version(address, mark, whole), start


def _same(version: _Version, known: _Version | None) -> bool:
    """Whether an answer continues the known version; without a mark, by its size."""
    return known is not None and (version.mark, version.size) == (known.mark, known.size)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_note(note: Path) -> _Version | None:
    with contextlib.suppress(OSError, *MALFORMED):
        return _Version(**json.loads(read_input_text(note)))
    return None


def _unreachable(address: str, found: str) -> Unreachable:
    return Unreachable(
        hidden_query(address),
        found=found,
        expected="the published file",
        remedy="try again later, or name another place of the file",
    )


def file_digests(path: Path, algorithm: str = "") -> dict[str, str]:
    """SHA-256 of a file in hexadecimal, and the digest of another algorithm, by name."""
    sums = {
        name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", algorithm or "sha256"}
    }
    with open_input(path) as stream:
        while part := stream.read(_PART):
            for each in sums.values():
                each.update(part)
    return {name: each.hexdigest() for name, each in sums.items()}
