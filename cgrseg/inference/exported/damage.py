"""The message for a file that its runtime cannot read."""

from __future__ import annotations

from pathlib import Path

from cgrseg.errors import explain
from cgrseg.surroundings import raise_machine_problem


def damaged(path: Path, expected: str, reason: object) -> str:
    """Says what was found, in the runtime's own words, cut to one line.

    Raises:
        EnvironmentProblem: the file is not to blame: memory, files or threads are used up.
    """
    if isinstance(reason, BaseException):
        raise_machine_problem(reason, path)
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    told = lines[0][:200] if lines else type(reason).__name__
    size = path.stat().st_size if path.is_file() else 0
    return explain(
        path,
        found=f"a file of {size:,} bytes that cannot be read ({told})",
        expected=expected,
        remedy="the file is damaged or cut short: copy it again, or export the checkpoint again",
    )
