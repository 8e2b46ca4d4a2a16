"""Reports that people open: one HTML file per run, comparisons of runs, cost.

The names below are imported when first used: the cost of a network needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgrseg.reporting.comparison import Comparison, compare_runs
    from cgrseg.reporting.comparison_page import write_comparison
    from cgrseg.reporting.records import (
        EvaluationRecord,
        ReportInput,
        Sample,
        read_evaluation,
    )
    from cgrseg.reporting.report import write_report
    from cgrseg.reporting.report_files import ReportFiles
    from cgrseg.reporting.run_report import report_on, write_run_report

_HOMES = {
    "Comparison": "comparison",
    "EvaluationRecord": "records",
    "ReportFiles": "report_files",
    "ReportInput": "records",
    "Sample": "records",
    "compare_runs": "comparison",
    "read_evaluation": "records",
    "report_on": "run_report",
    "write_comparison": "comparison_page",
    "write_report": "report",
    "write_run_report": "run_report",
}

__all__ = [
    "Comparison",
    "EvaluationRecord",
    "ReportFiles",
    "ReportInput",
    "Sample",
    "compare_runs",
    "read_evaluation",
    "report_on",
    "write_comparison",
    "write_report",
    "write_run_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
