"""Fixtures that every test module shares."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Outputs of the published code (see tests/golden/README.md)."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and labels kept beside the checkout; skips where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real sample images are not beside this checkout ({SHARED_DATA})")
    return SHARED_DATA


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")
