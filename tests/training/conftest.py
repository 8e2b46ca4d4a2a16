"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small are computed faster by one thread, and much faster beside others.

    For whole modules, because weights depend on the number of threads in their last bits: a run
    that a fixture of the module makes is compared with runs that its tests make.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
