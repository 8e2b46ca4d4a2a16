"""Which files a page brings along, and which of them may be replaced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

TABLES = ("classes", "images", "confusion")
"""Tables beside the page of one run: `report_classes.csv` and so on."""
COMPARISON_TABLES = ("classes",)
"""Tables beside a comparison."""

# Files of a run's folder, whose JSON or CSV a page of the same name would replace.
_RUNS_OWN = ("config", "metrics", "scores")


def check_targets(
    page: Path | str,
    tables: Sequence[str],
    *,
    overwrite: bool = False,
    own: str | None = None,
) -> None:
    """Refuse to write a page where it, or a file that comes with it, would replace another.

    Args:
        page: the HTML file; `.json` and `_<table>.csv` of the same stem lie beside it.
        tables: names of those.
        overwrite: replace what is there.
        own: name of a run, an earlier report of which may be replaced.

    Raises:
        DataError: one of the files is there already; or the page has the name of a file of
            runs, in which case `overwrite` does not matter.
    """
    target = Path(page)
    stem = target.with_suffix("")
    numbers = stem.with_name(f"{stem.name}.json")
    reserved = stem.name.startswith("evaluation") or stem.name in _RUNS_OWN
    if reserved or target.suffix.lower() in (".json", ".csv"):
        raise DataError(
            target,
            found=f"a page of this name, whose numbers ({numbers.name}) and tables could "
            "replace a run's own files",
            expected="another name, ending in .html",
            remedy="call it report.html",
        )
    files = [target, numbers, *(stem.with_name(f"{stem.name}_{table}.csv") for table in tables)]
    there = [file for file in files if file.exists()]
    if there and not overwrite and not (own is not None and _is_report_of(numbers, own)):
        raise DataError(
            there[0],
            found="it is there already",
            expected=f"new files ({target.name} and what lies beside it)",
            remedy="choose another name with `cgrseg report --out`, or replace it with "
            "`cgrseg report --overwrite`",
        )


def _is_report_of(numbers: Path, run: str) -> bool:
    try:
        found = json.loads(read_input_text(numbers))
        return {"title", "versions", "config"} <= found.keys() and (
            found["evaluation"]["settings"]["run"] == run
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
