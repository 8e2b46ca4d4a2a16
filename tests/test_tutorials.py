"""The tutorials of the documentation run as they stand, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_tutorials_run(repository: Path, tmp_path: Path) -> None:
    def run(name: str, *arguments: str) -> str:
        script = repository / "docs" / "tutorials" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "0 errors" in run("own_images", "first")
    assert (tmp_path / "first/run/report.html").is_file()
    images = sorted((tmp_path / "first/data/images/val").iterdir())
    assert {path.stem for path in (tmp_path / "first/predictions/labels").iterdir()} == {
        path.stem for path in images
    }
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    said = run("to_a_device", "first/run/best.pth", str(images[0]), "device")
    shares = [line.split(", ")[-1] for line in said.splitlines() if "equal labels" in line]
    assert len(shares) == 3
    assert all(float(share.split("%")[0]) >= 99.9 for share in shares)
