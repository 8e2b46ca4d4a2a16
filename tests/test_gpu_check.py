"""`make gpu-check` as far as a CPU can tell: pieces, resuming, failures, wheels, the report."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with the modules beside it."""
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    found = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def pieces(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four pieces in place of the real ones, and the names of those that ran."""
    ran: list[str] = []

    def piece(name: str, work: Any) -> Any:
        def run(check: Any) -> dict[str, Any]:
            ran.append(name)
            return dict(work(check) or {})

        return gpu_check.Piece(name, f"what {name} checks", run)

    def skips(check: Any) -> None:
        raise gpu_check.Skipped("nothing to do here")

    fails = "raise ValueError('the reason of it')"
    listed = [
        piece("works", lambda check: {"answer": check.python("print(7)")}),
        piece("fails", lambda check: check.run(sys.executable, "-c", fails)),
        piece("skips", skips),
        piece("last", lambda check: {"bench": []}),
    ]
    monkeypatch.setattr(gpu_check, "PIECES", listed)
    return ran


def test_pieces_go_on_where_they_stopped(
    gpu_check: Any, pieces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    assert gpu_check.main([*arguments, "--piece", "works"]) == 1  # three are left
    assert gpu_check.main(arguments) == 1  # a failed piece does not stop the next ones
    assert pieces == ["works", "fails", "skips", "last"]
    results = gpu_check.read_results(tmp_path / "out")
    assert {name: record["status"] for name, record in results.items()} == {
        "works": "done",
        "fails": "failed",
        "skips": "skipped",
        "last": "done",
    }
    assert results["works"]["result"] == {"answer": 7}
    assert "exit status 1" in results["fails"]["error"][0]
    assert results["fails"]["error"][1] == "ValueError: the reason of it"
    assert results["skips"]["error"] == ["nothing to do here"]
    assert gpu_check.main(arguments) == 1 and len(pieces) == 4  # nothing is repeated
    assert gpu_check.main([*arguments, "--again"]) == 1
    assert pieces[4:] == ["fails", "skips"]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| works | done |" in page and "| fails | **failed** |" in page
    assert "ValueError: the reason of it" in page and "rehearsal" in page
    assert "answer 7" in page and not list((tmp_path / "out").glob("*.partial"))
    capsys.readouterr()
    assert gpu_check.main([*arguments, "--list"]) == 0
    assert "fails" in capsys.readouterr().out


def test_a_call_ends_after_its_minutes(
    gpu_check: Any, pieces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert gpu_check.main([*arguments, "--minutes", "0"]) == 1
    assert pieces == [] and "the next call goes on" in capsys.readouterr().out


def test_a_piece_that_is_cut_by_the_call_is_repeated(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "_LEAST", 0.0)
    waits = "import time; print('begun', flush=True); time.sleep(600)"
    piece = gpu_check.Piece("waits", "", lambda check: check.run(sys.executable, "-c", waits))
    monkeypatch.setattr(gpu_check, "PIECES", [piece])
    arguments = ["--device", "cpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    assert gpu_check.main([*arguments, "--minutes", "0.02"]) == 1
    assert gpu_check.read_results(tmp_path / "out")["waits"]["status"] == "unfinished"
    monkeypatch.setattr(gpu_check, "LIMIT", 1.0)
    assert gpu_check.main(arguments) == 1
    record = gpu_check.read_results(tmp_path / "out")["waits"]
    assert record["status"] == "failed" and "longer than 1 s" in record["error"][0]


def test_the_names_of_the_real_pieces(gpu_check: Any) -> None:
    names = [piece.name for piece in gpu_check.PIECES]
    assert len(set(names)) == len(names) == 40
    for variant in "tbl":
        for batch in (1, 32):
            for form in ("eager", "compiled-fp32", "compiled-bf16", "compiled-fp16"):
                assert f"bench-{variant}-batch{batch}-{form}" in names
    with pytest.raises(SystemExit):
        gpu_check.main(["--piece", "nonsense"])


def test_the_rehearsal_of_a_real_piece(tmp_path: Path) -> None:
    folders = ("--out", tmp_path / "out", "--work", tmp_path / "work")
    command = [sys.executable, SCRIPT, "--device", "cpu", *folders, "--piece", "environment"]
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert finished.returncode == 1 and "environment: done" in finished.stdout
    record = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert record["result"]["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_check_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2 and "no GPU was found" in finished.stderr
    assert not (tmp_path / "out").exists()


def test_wheels_of_missing_packages_are_installed(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "torch-9.9-cp312-none-any.whl",
        "nvidia_nccl-1-py3-none-any.whl",
        "numpy-99.0-py3-none-any.whl",  # present, and new enough
        "no_such_package-1.0-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    chosen = gpu_check.install_missing(tmp_path, tmp_path / "target")
    assert [Path(wheel).name for wheel in chosen] == ["no_such_package-1.0-py3-none-any.whl"]
    assert asked[0][1:4] == ["-m", "pip", "install"] and "--no-index" in asked[0]
    with pytest.raises(OSError, match="no wheels"):
        gpu_check.install_missing(tmp_path / "empty", tmp_path)


def test_errors_of_a_log(gpu_check: Any) -> None:
    log = "fine\nTraceback (most recent call last):\n  File\nRuntimeError: CUDA error: 7\nafter\n"
    assert gpu_check.error_lines(log) == ["RuntimeError: CUDA error: 7", "after"]
    assert gpu_check.error_lines("one\ntwo\n") == ["one", "two"]
