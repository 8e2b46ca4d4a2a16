"""The Hugging Face hub: downloads, kept in the cache of `huggingface_hub`, and uploads."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrseg.downloading import ENDINGS, file_digests
from cgrseg.downloading import download as download_address
from cgrseg.errors import CGRSegError, DataError, EnvironmentProblem, option
from cgrseg.processes import is_first_process
from cgrseg.progress import shown_progress

_ANSWERS_WITHIN = 5.0  # seconds
_SHA256 = re.compile("[0-9a-f]{64}")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def download(
    hub_id: str, patterns: Sequence[str], problem: type[CGRSegError], **options: Any
) -> Path:
    """Folder of a repository's files that match one of the patterns.

    Args:
        hub_id: as `owner/name`.
        patterns: such as `*.safetensors`.
        problem: class of the error.
        options: as for `huggingface_hub.snapshot_download`; None: its default.

    Raises:
        problem: no such repository, or no connection.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            hub_id,
            allow_patterns=list(patterns),
            **{k: v for k, v in options.items() if v is not None},
        )
    except Exception as error:  # the hub client raises many unrelated types
        raise problem(
            hub_id,
            found=f"no such local path, and the hub did not give it ({_reason(error)})",
            expected="a local path, or a hub id that this machine can reach",
            remedy="check the spelling and the network, or download the file by hand and "
            "pass its path",
        ) from error
    return Path(folder)


@dataclass(frozen=True)
class CachedFile:
    """A file of a repository in the cache of `huggingface_hub`.

    Attributes:
        path: the file.
        digest: its SHA-256 in hexadecimal, equal to the one that the hub states; None: the cache
            does not record it (file systems without symlinks).
    """

    path: Path
    digest: str | None


class NotAvailable(CGRSegError):
    """A file that is not whole in the cache and cannot be downloaded; its text is the reason."""


def hub_address() -> str:
    """Address of the hub: `HF_ENDPOINT`, or https://huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def cached_path(hub_id: str, name: str) -> Path | None:
    """Path of a repository's file in the cache of `huggingface_hub`; None: not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def locate_file(hub_id: str, name: str, tell: Callable[[str], None]) -> CachedFile:
    """A large file of a repository: verified in the cache, or downloaded and verified.

    `huggingface_hub` does not resume a download of an earlier process, so
    :mod:`cgrseg.downloading` fetches the content; the cache has the layout of `huggingface_hub`.
    `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `HTTPS_PROXY` apply.
    A file in the cache is used without asking the hub.  One process downloads, the others wait.

    Args:
        hub_id: as `owner/name`.
        name: file in the repository.
        tell: gets a line about a download, a resumed download, and a damaged file.

    Raises:
        NotAvailable: no connection, no such file, or a content with another digest.
    """
    found = _in_cache(hub_id, name, None)
    if found is not None:
        return found
    try:
        return _fetch_file(hub_id, name, tell)
    except NotAvailable as error:
        kept = cached_path(hub_id, name)
        state = f"{hub_id} is not in the cache" if kept is None else f"{kept} is damaged"
        raise NotAvailable(f"{state}, and {error}") from error


def _fetch_file(hub_id: str, name: str, tell: Callable[[str], None]) -> CachedFile:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        WeakFileLock,
        build_hf_headers,
    )

    try:
        address = hf_hub_url(hub_id, name)
        known = get_hf_file_metadata(address, timeout=_ANSWERS_WITHIN)
    except Exception as error:  # the hub client raises many unrelated types
        raise NotAvailable(f"{hub_address()} does not give it ({_reason(error)})") from error
    digest = known.etag or ""
    if not _SHA256.fullmatch(digest):
        raise NotAvailable(f"{hub_address()} does not state its SHA-256")
    if not is_first_process():
        time.sleep(1)  # the first process shows the progress, so it takes the lock
    folder = repo_folder_name(repo_id=hub_id, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE)
    blob = cache / folder / "blobs" / digest
    fresh = blob.with_name(f"{digest}.download")
    token = build_hf_headers().get("authorization")
    lock = cache / ".locks" / folder / f"{digest}.download.lock"
    try:
        for each in (blob, lock):
            each.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            found = _in_cache(hub_id, name, tell)  # another process downloaded it, or damaged
            if found is not None:
                return found
            size = known.size or 0
            tell(f"downloading {address} ({size / 1e6:.1f} MB) into {blob.parent.parent}")
            for attempt in range(2):
                with contextlib.suppress(OSError):
                    done = fresh.with_name(fresh.name + ENDINGS[0]).stat().st_size
                    tell(f"an interrupted download is resumed after {done / 1e6:.1f} MB")
                with shown_progress("downloading", unit="MB") as progress:
                    download_address(address, fresh, size, progress, authorization=token)
                if file_digests(fresh)["sha256"] == digest:
                    break
                fresh.unlink()
                damaged = f"the downloaded file is damaged: its SHA-256 is not {digest}"
                if attempt:
                    raise NotAvailable(f"{damaged}, twice")
                tell(f"{damaged}; it was removed and is downloaded once again")
            fresh.replace(blob)
        return CachedFile(Path(hf_hub_download(hub_id, name, etag_timeout=_ANSWERS_WITHIN)), digest)
    except DataError as error:  # what was received stays
        raise NotAvailable(
            f"{error}".splitlines()[0]
            + "; what was received is kept, and the same command resumes it"
        ) from error
    except OSError as error:
        raise NotAvailable(f"it cannot be kept in the cache {cache} ({_reason(error)})") from error


def _in_cache(hub_id: str, name: str, tell: Callable[[str], None] | None) -> CachedFile | None:
    """The file in the cache, if it is whole; with `tell`, a damaged file is removed."""
    from safetensors import SafetensorError, safe_open

    path = cached_path(hub_id, name)
    if path is None:
        return None
    # A file of the cache is a symlink to a file that has the digest as its name.
    blob = path.parent / os.readlink(path) if path.is_symlink() else None
    digest = blob.name if blob is not None and _SHA256.fullmatch(blob.name) else None
    try:
        if digest is None:
            with safe_open(str(path), framework="np"):
                return CachedFile(path, None)
        if file_digests(path)["sha256"] == digest:
            return CachedFile(path, digest)
    except (SafetensorError, OSError, CGRSegError):
        pass
    if tell is not None:
        tell(f"{path} is damaged: its content is not the one that the hub published; removed")
        path.unlink(missing_ok=True)
        if blob is not None:
            blob.unlink(missing_ok=True)
    return None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def upload(
    folder: Path, hub_id: str, *, private: bool, update: bool, tell: Callable[[str], None]
) -> tuple[str, str]:
    """Upload the files of a folder to a model repository, as one commit.

    Args:
        folder: local folder without subfolders.
        hub_id: as `owner/name`.
        private: create a private repository.
        update: add a commit to a repository that exists.
        tell: gets the list of files and their size before the upload.

    Returns:
        Address of the repository, and the commit.

    Raises:
        EnvironmentProblem: no token, no permission, a repository that exists, or no connection.
            The folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    names = ", ".join(path.name for path in files)
    tell(f"uploading {names} ({size / 1e6:.1f} MB) to {api.endpoint}/{hub_id}")
    try:
        api.create_repo(hub_id, private=private, exist_ok=update)
        commit = api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            allow_patterns=[path.name for path in files],
            commit_message="Publish weights with cgrseg",
        )
    except Exception as error:  # the hub client raises many unrelated types
        raise _upload_problem(error, folder, hub_id, api.endpoint) from error
    return f"{api.endpoint}/{hub_id}", str(commit.oid)


def _upload_problem(
    error: Exception, folder: Path, hub_id: str, endpoint: str
) -> EnvironmentProblem:
    status = getattr(getattr(error, "response", None), "status_code", None)
    again = "and run the same command again"
    found, remedy = {
        401: (
            "the hub was given no valid token",
            f"log in with hf auth login, or set HF_TOKEN, {again}",
        ),
        403: (
            "the token may not write there",
            f"use a token with write access, or a name of your own, {again}",
        ),
        409: (
            "the repository exists",
            f"choose another name, or add a commit to it with {option('--update')}",
        ),
    }.get(
        status or 0,
        (
            f"the upload failed ({_reason(error)})",
            f"check the network, HF_ENDPOINT and HF_HUB_OFFLINE, {again}",
        ),
    )
    return EnvironmentProblem(
        f"{endpoint}/{hub_id}",
        found=found,
        expected="a repository that this user may write",
        remedy=f"{remedy}; the folder {folder} is complete and stays",
    )
