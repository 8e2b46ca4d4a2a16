"""What the scripts in `tools/convert_datasets` share: progress, messages, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cgrseg.data.convert.runner import ConversionReport
from cgrseg.errors import EXIT_PROBLEM, CGRSegError, FrontEnd, speaking_as
from cgrseg.processes import ending_by_signals
from cgrseg.surroundings import readable_machine_problems


def progress_line(done: int, total: int) -> None:
    """Show progress on standard error, on one line, where a terminal is there to show it."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total}", end=end, file=sys.stderr, flush=True)


def finish(convert: Callable[[], ConversionReport]) -> int:
    """Run a conversion and say what was made.

    Returns:
        Exit status: 0 all well, 1 something was skipped, 2 nothing could be done.

    Raises:
        SystemExit: with 128 plus the number of a signal that ended it.
    """
    try:
        with ending_by_signals(), speaking_as(FrontEnd.SCRIPT), readable_machine_problems():
            report = convert()
    except CGRSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_PROBLEM
    print(report.text())
    return report.exit_code
