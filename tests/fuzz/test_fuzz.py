"""Damaged inputs over all readers: a right answer or an error, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fuzz.guard import FAULTS, case_of, guard, try_case, undamaged_answer
from tests.fuzz.readers import SELF_TEST, Reader, make_readers

for package in ("scipy", "pyarrow"):
    pytest.importorskip(package, reason="needs the extra [convert]")
for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="needs the extra [export]")


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    return make_readers()


@pytest.fixture(autouse=True)
def _same_place() -> Iterator[None]:
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.chdir(before)


@pytest.mark.filterwarnings("ignore")
def test_a_few_damaged_inputs_of_each_kind(readers: dict[str, Reader], tmp_path: Path) -> None:
    faults, outcomes = [], set()
    for name, reader in readers.items():
        expected = undamaged_answer(reader, tmp_path)
        assert try_case(reader, reader.content, tmp_path, expected)[0] == "right", name
        # With a right digest over wrong bytes a runtime may end the process: in the guard only.
        for number in range(0 if "resealed" in name else 8):
            outcome, told = try_case(reader, case_of(name, reader, number), tmp_path, expected)
            outcomes.add(outcome)
            if outcome in FAULTS:
                faults.append((name, number, outcome, told))
    assert not faults
    assert {"right", "refused"} <= outcomes


@pytest.mark.slow
def test_a_crash_is_recorded_with_its_input(tmp_path: Path) -> None:
    """The guard itself, on a reader that ends its process at inputs with bytes above 127."""
    cases = [case_of("crashes", SELF_TEST["crashes"], number) for number in range(6)]
    ending = [number for number, content in enumerate(cases) if max(content, default=0) > 127]
    result = guard("crashes", 6, tmp_path / "crashes")
    assert [case for case, outcome, _ in result.faults if outcome == "crash"] == ending
    assert sum(result.counts.values()) == 6 > result.counts["crash"] == len(ending) > 0


@pytest.mark.slow
def test_many_damaged_inputs_of_each_kind(readers: dict[str, Reader], tmp_path: Path) -> None:
    results = {name: guard(name, 150, tmp_path / str(k)) for k, name in enumerate(readers)}
    assert all(sum(result.counts.values()) == 150 for result in results.values())
    assert not {name: result.faults for name, result in results.items() if result.faults}
