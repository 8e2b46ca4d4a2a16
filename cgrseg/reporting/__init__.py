"""Reports that people open: one HTML file per run, comparisons of runs, cost."""

from __future__ import annotations

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
