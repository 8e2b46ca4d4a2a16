"""A digest inside an exported file, over the file itself.

ONNX and OpenVINO files have no checksums: a changed byte gives other weights or another graph
without a word, or ends the runtime that reads it.  So the description holds the SHA-256 of
the file in which the digest's own 64 characters are zeros.  It tells damage, not malice:
whoever changes a file on purpose can write a new digest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cgrseg.errors import WeightsError
from cgrseg.inference.exported.damage import damaged
from cgrseg.inference.exported.description import Description

UNSEALED = "0" * 64
"""The digest while the file is not complete yet."""


def sealed(content: bytes) -> bytes:
    """A complete file's content with its digest in the place of :data:`UNSEALED`."""
    assert content.count(UNSEALED.encode()) == 1
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def refuse_damage(content: bytes, description: Description, path: Path, what: str) -> None:
    """Compare a file's content with the digest in its description.

    Args:
        content: of the file.
        description: read from it.
        path: the file.
        what: it should be, for the message.

    Raises:
        WeightsError: the content is not what was written, or there is no digest.
    """
    digest = description.file_digest.encode()
    if len(digest) != len(UNSEALED):
        raise WeightsError(
            path,
            found="an export without a digest of itself, from an earlier version",
            expected="a file as this version writes it, whose damage can be told",
            remedy="export the checkpoint again",
        )
    if hashlib.sha256(content.replace(digest, UNSEALED.encode())).digest().hex().encode() != digest:
        raise WeightsError(damaged(path, what, "its bytes are not those that were written"))
