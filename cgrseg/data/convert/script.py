"""What the scripts in `tools/convert_datasets` share: progress, messages, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cgrseg.data.convert.runner import ConversionReport
from cgrseg.errors import CGRSegError, FrontEnd, speaking_as
from cgrseg.surroundings import readable_machine_problems


def progress_line(done: int, total: int) -> None:
    """Show progress on standard error, on one line, where a terminal is there to show it."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total}", end=end, file=sys.stderr, flush=True)


def finish(convert: Callable[[], ConversionReport]) -> int:
    """Run a conversion and say what was made.

    Returns:
        Exit status: 0 all well, 1 something was skipped, 2 nothing could be done, 130
        interrupted.
    """
    try:
        with speaking_as(FrontEnd.SCRIPT), readable_machine_problems():
            report = convert()
    except CGRSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(report.text())
    return report.exit_code
