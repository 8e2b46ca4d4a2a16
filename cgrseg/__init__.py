"""CGRSeg: efficient semantic segmentation (Ni et al., ECCV 2024, arXiv 2405.06228).

The names below are the public surface.  They are imported when first used, so that
`import cgrseg` stays light and a missing extra is noticed only where it is needed.

    >>> import cgrseg
    >>> model = cgrseg.create_model("cgrseg_t", num_classes=150)
    >>> predictor = cgrseg.Predictor.from_pretrained("work_dirs/demo/best.pth")
    >>> labels = predictor("street.jpg").labels
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cgrseg.transformers_import import register_with_transformers

if TYPE_CHECKING:
    from cgrseg.config import Config, load_config
    from cgrseg.evaluation.evaluate import evaluate
    from cgrseg.inference import Predictor
    from cgrseg.models import create_model, list_models, load_model, load_weights
    from cgrseg.training import train

__version__ = "0.1.0"

_HOMES = {
    "Config": "cgrseg.config",
    "Predictor": "cgrseg.inference",
    "create_model": "cgrseg.models",
    "evaluate": "cgrseg.evaluation",
    "list_models": "cgrseg.models",
    "load_config": "cgrseg.config",
    "load_model": "cgrseg.models",
    "load_weights": "cgrseg.models",
    "train": "cgrseg.training",
}

__all__ = [
    "Config",
    "Predictor",
    "__version__",
    "create_model",
    "evaluate",
    "list_models",
    "load_config",
    "load_model",
    "load_weights",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cgrseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register_with_transformers("cgrseg.huggingface.config")
