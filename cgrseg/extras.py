"""Optional dependencies: which package each extra installs, and the error for a missing one."""

from __future__ import annotations

import importlib
from typing import Any

from cgrseg.errors import EnvironmentProblem

EXTRAS: dict[str, dict[str, str]] = {
    "export": {name: name for name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")},
    "web": {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "python_multipart": "python-multipart",
    },
    "geo": {"rasterio": "rasterio"},
    "convert": {"scipy": "scipy", "pyarrow": "pyarrow"},
    "ray": {"ray": "ray", "pyarrow": "pyarrow"},
    "hf": {"transformers": "transformers"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "executorch": {"executorch": "executorch"},
    "litert": {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"},
    "coreml": {"coremltools": "coremltools"},
    "ncnn": {"pnnx": "pnnx", "ncnn": "ncnn"},
}
"""Extra of `pip install "cgrseg[EXTRA]"` to its packages: import name to distribution name."""


def require(package: str, for_what: object, *, otherwise: str = "") -> Any:
    """Import an optional package.

    Args:
        package: import name of the package or of one of its modules.
        for_what: file, setting or command that needs it: the first part of the message.
        otherwise: what to do instead of installing it, e.g. "or set train.wandb=false".

    Raises:
        EnvironmentProblem: the package is not installed, or its import fails.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        install = f"pip install {name}" if extra is None else f'pip install "cgrseg[{extra}]"'
        raise EnvironmentProblem(
            for_what,
            found=f"the package {name} is not installed"
            if missing
            else f"the package {package} cannot be imported ({error})",
            expected=f"the package {name}"
            if extra is None
            else f"the packages of the extra [{extra}]",
            remedy=f"{install}, {otherwise}" if otherwise else install,
        ) from error


def require_extra(extra: str, for_what: object) -> None:
    """Import all packages of an extra, to fail before long work.

    Raises:
        EnvironmentProblem: a package of the extra is not installed, or its import fails.
    """
    for package in EXTRAS[extra]:
        require(package, for_what)
