"""The doctor: what is wrong with a dataset, in words, before it costs a training run.

:func:`check_dataset` looks at every file; :func:`quick_check` is the short form that
runs before training.  Both return a :class:`CheckReport`.
"""

from __future__ import annotations

from cgrseg.data.check.doctor import check_dataset, quick_check
from cgrseg.data.check.guess import guess_dataset
from cgrseg.data.check.learnable import refuse_nothing_to_learn
from cgrseg.data.check.report import CheckReport, SplitSummary
from cgrseg.data.findings import CODES, Finding

__all__ = [
    "CODES",
    "CheckReport",
    "Finding",
    "SplitSummary",
    "check_dataset",
    "guess_dataset",
    "quick_check",
    "refuse_nothing_to_learn",
]
