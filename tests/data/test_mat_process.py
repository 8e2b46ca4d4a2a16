"""MATLAB files that end scipy's process: the file is named, the others are converted."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cgrseg.data.convert import convert_coco_stuff10k, convert_pascal_context
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.data.mat_process import MatReader, ReaderDied, ReaderMissing

HEIGHT, WIDTH = 24, 32
UINT16, NO_TYPE = 4, 36


def mat_file(path: Path, field: str, *, damaged: bool = False) -> Path:
    """A label map of one id; damaged: with a data type of its values that does not exist."""
    scipy_io = pytest.importorskip("scipy.io")
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, {field: np.full((HEIGHT, WIDTH), 2, np.uint16)})
    if damaged:
        size = 2 * HEIGHT * WIDTH
        tag = struct.pack("<II", UINT16, size)
        content = path.read_bytes()
        assert content.count(tag) == 1
        path.write_bytes(content.replace(tag, struct.pack("<II", NO_TYPE, size)))
    return path


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pascal_context_names_the_file_and_goes_on(tmp_path: Path, workers: int) -> None:
    for number in range(12):
        mat_file(tmp_path / "mats" / f"{number:02d}.mat", "LabelMap", damaged=number in (0, 7))
    report = convert_pascal_context(tmp_path / "mats", tmp_path / "out", workers=workers)
    assert report.written == 10 and report.exit_code == 1
    assert sorted(Path(failure.file).name for failure in report.failures) == ["00.mat", "07.mat"]
    assert all("SIGSEGV" in failure.message for failure in report.failures)
    assert not (tmp_path / "out" / "SegmentationClassContext" / "07.png").exists()
    assert (
        read_label(tmp_path / "out" / "SegmentationClassContext" / "11.png").tolist()
        == [[1] * WIDTH] * HEIGHT
    )


def test_coco_stuff_names_the_file_and_goes_on(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for stem in ("a", "b", "c"):
        mat_file(raw / "annotations" / f"{stem}.mat", "S", damaged=stem == "b")
        (raw / "images").mkdir(exist_ok=True)
        write_image(raw / "images" / f"{stem}.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (raw / "imageLists").mkdir()
    (raw / "imageLists" / "train.txt").write_text("a\nb\nc\n")
    report = convert_coco_stuff10k(raw, tmp_path / "out")
    assert report.written == 2 and report.exit_code == 1
    assert "b.mat: reading it ended the process" in report.failures[0].message


def test_one_process_reads_many_files_and_another_takes_over_after_a_death(tmp_path: Path) -> None:
    good = mat_file(tmp_path / "good.mat", "S")
    bad = mat_file(tmp_path / "bad.mat", "S", damaged=True)
    reader = MatReader()
    try:
        first = reader.read(good, "S")
        process = reader._process
        assert reader.read(good, "S").values is not None and reader._process is process
        with pytest.raises(ReaderDied, match="SIGSEGV"):
            reader.read(bad, "S")
        again = reader.read(good, "S")
        assert first.values is not None and again.values is not None
        assert np.array_equal(first.values, again.values) and first.values.dtype == np.uint16
        assert reader.read(tmp_path / "absent.mat", "S").error == "FileNotFoundError"
    finally:
        reader.close()


def test_the_process_takes_no_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("scipy", "numpy", "json"):
        (tmp_path / f"{module}.py").write_text("import os; os._exit(7)\n")
    good = mat_file(tmp_path / "good.mat", "S")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    reader = MatReader()
    try:
        assert reader.read(good, "S").fields == ["S"]
    finally:
        reader.close()


def test_a_process_that_does_not_start_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ReaderMissing, match="status 1"):
        MatReader().read(tmp_path / "a.mat", "S")


def test_the_process_ends_with_a_killed_parent(tmp_path: Path) -> None:
    mat_file(tmp_path / "good.mat", "S")
    code = (
        "import os, signal; from pathlib import Path; from cgrseg.data.mat_process import *\n"
        f"MAT_READER.read(Path({str(tmp_path / 'good.mat')!r}), 'S')\n"
        "print(MAT_READER._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    child = int(found.stdout)
    while _runs(child):  # it ends by itself, or this test never does
        time.sleep(0.01)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
