"""Measuring how fast and how large prediction is, honestly: see docs/speed.md."""

from __future__ import annotations

from cgrseg.reporting.bench.report import as_markdown, profile_markdown
from cgrseg.reporting.bench.run import BenchResult, run_bench, spread_weights
from cgrseg.reporting.bench.subjects import Subject, known_subjects, register
from cgrseg.reporting.bench.timing import CLOCKS
from cgrseg.reporting.bench.work import WORKS, Work

__all__ = [
    "CLOCKS",
    "WORKS",
    "BenchResult",
    "Subject",
    "Work",
    "as_markdown",
    "known_subjects",
    "profile_markdown",
    "register",
    "run_bench",
    "spread_weights",
]
