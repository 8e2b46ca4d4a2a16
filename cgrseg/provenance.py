"""Records of the sources of a result, for commands that resume.

An existing result is kept only if the record of its sources equals their present state.  There
are two kinds of records:

* the digest of the decoded bytes, where the reader has them in memory anyway (predictions);
* size and modification time in nanoseconds of each source, taken before it is read, so that a
  large dataset is not read twice (conversions, painted videos).  A source that is replaced while
  it is read has another state afterwards, so the next command makes the result again.

Times are compared for equality, never for order: clocks are set back, and copies that keep dates
(`cp -p`, `rsync -t`) replace a file by one with an older date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MISSING = "-"
"""State of a missing file."""


def content_digest(data: bytes) -> str:
    """Digest of the bytes of a file, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def settings_digest(value: Any) -> str:
    """Digest of settings (plain types), independent of the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_state(path: Path | str) -> str:
    """Size in bytes and modification time in nanoseconds of a file; `MISSING` without one."""
    try:
        found = Path(path).stat()
    except OSError:
        return MISSING
    return f"{found.st_size}:{found.st_mtime_ns}"


def joint_state(paths: Iterable[Path | str]) -> str:
    """Digest of the states of several files, in their order."""
    return content_digest(" ".join(file_state(path) for path in paths).encode())
