"""Downloads from the Hugging Face hub, kept in the cache of `huggingface_hub`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgrseg.errors import CGRSegError


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
