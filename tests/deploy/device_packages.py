"""The packages of ExecuTorch, LiteRT and ncnn, which most environments lack."""

from __future__ import annotations

import importlib
import os

import pytest

from cgrseg.extras import EXTRAS


def need_packages(extra: str) -> None:
    """Skip the test without the packages of an extra; `make test-devices` fails without them."""
    for package in EXTRAS[extra]:
        need_package(package)


def need_package(package: str) -> None:
    """Likewise for one package of any extra, by its import name."""
    extra = next(extra for extra, names in EXTRAS.items() if package in names)
    if os.environ.get("CGRSEG_TEST_DEVICES"):
        importlib.import_module(package)
    else:
        pytest.importorskip(package, reason=f"needs the extra [{extra}]: make test-devices")
