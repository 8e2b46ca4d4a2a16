"""Training: the published recipe, run by Lightning, resumable at any moment.

`train` and `TrainResult` are imported on first use, because they need Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cgrseg.matplotlib_import  # noqa: F401  before torchmetrics, which imports matplotlib
from cgrseg.training.optimizer import parameter_groups

if TYPE_CHECKING:
    from cgrseg.training.runner import TrainResult, train

__all__ = ["TrainResult", "parameter_groups", "train"]


def __getattr__(name: str) -> Any:
    if name in ("TrainResult", "train"):
        from cgrseg.training import runner

        return getattr(runner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
