"""Make sure that the tests on real images ran: skipped ones would look green.

Usage: python scripts/check_real_data_ran.py JUNIT_XML...
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

WORDS = ("beside this checkout", "real sample", "shared data", "shared_data")


def main(reports: list[str]) -> int:
    """Read pytest's reports; 1 when a test was skipped for want of real data."""
    cases = [case for path in reports for case in ElementTree.parse(path).iter("testcase")]
    skipped = [
        f"{case.get('classname')}::{case.get('name')}: {reason}"
        for case in cases
        for element in case.iter("skipped")
        if any(word in (reason := element.get("message") or "") for word in WORDS)
    ]
    if not cases:
        print(f"no tests in {', '.join(Path(path).name for path in reports)}")
        return 1
    for line in skipped:
        print(f"skipped although the data is there: {line}")
    if not skipped:
        print(f"all tests that need it ran ({len(cases)} tests in all)")
    return 1 if skipped else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1:]))
