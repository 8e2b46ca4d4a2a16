"""The Hugging Face hub: downloads, kept in the cache of `huggingface_hub`, and uploads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cgrseg.errors import CGRSegError, EnvironmentProblem, option


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
            found=f"no such local path, and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'})",
            expected="a local path, or a hub id that this machine can reach",
            remedy="check the spelling and the network, or download the file by hand and "
            "pass its path",
        ) from error
    return Path(folder)


def upload(
    folder: Path, hub_id: str, *, private: bool, exist_ok: bool, tell: Callable[[str], None]
) -> tuple[str, str]:
    """Upload the files of a folder to a model repository, as one commit.

    Args:
        folder: local folder without subfolders.
        hub_id: as `owner/name`.
        private: create a private repository.
        exist_ok: add a commit to a repository that exists.
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
        api.create_repo(hub_id, private=private, exist_ok=exist_ok)
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
    reason = str(error).strip().splitlines()
    again = f"and run the command again with {option('--overwrite')}"
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
            f"choose another name, or add a commit to it with {option('--overwrite')}",
        ),
    }.get(
        status or 0,
        (
            f"the upload failed ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'})",
            f"check the network, HF_ENDPOINT and HF_HUB_OFFLINE, {again}",
        ),
    )
    return EnvironmentProblem(
        f"{endpoint}/{hub_id}",
        found=found,
        expected="a repository that this user may write",
        remedy=f"{remedy}; the folder {folder} is complete and stays",
    )
