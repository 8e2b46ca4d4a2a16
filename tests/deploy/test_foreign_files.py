"""Damaged and foreign files of every format: `cgrseg predict` names the file, status 2."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from cgrseg.cli.main import app
from cgrseg.formats import load_format
from cgrseg.formats.base import ExportJob
from cgrseg.formats.description import read_appended
from cgrseg.formats.names import format_names
from cgrseg.formats.torch_program import DESCRIPTION_FILE
from cgrseg.models import CGRSeg
from tests.deploy.device_packages import need_package
from tests.inference.fixtures import description, photo

SIZE = (64, 96)
Damage = Callable[[bytes], bytes]


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 4]) + content[1:]


DAMAGES: dict[str, Damage] = {
    "empty": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "half": lambda whole: whole[: len(whole) // 2],
    "without its last byte": lambda whole: whole[:-1],
    "random bytes": lambda whole: np.random.default_rng(0).bytes(len(whole)),
    "one bit": lambda whole: whole[: len(whole) // 3] + flipped(whole[len(whole) // 3 :]),
    "an image": lambda whole: cv2.imencode(".png", photo(64, 96))[1].tobytes(),
}


class _Network(torch.nn.Module):
    """Seven classes of each 8x8 block."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 7, 8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.convolution(image)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name == "aoti" else name
        for name in format_names()
        # A page beside an ONNX file, which is all that is opened; and what no runtime opens here.
        if name != "web" and load_format(name).compared
    ],
)
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in a folder of its own, written by its format."""
    export_format = load_format(request.param)
    for package in export_format.packages:
        need_package(package)
    if export_format.needs_compiler and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler: g++")
    path = tmp_path_factory.mktemp(request.param) / f"model{export_format.suffix}"
    about = description(kind=request.param, sizes=[SIZE], batch=1)
    export_format.write(ExportJob(CGRSeg, lambda size: _Network().eval(), about), path)  # type: ignore[arg-type]
    return path


def predict(path: Path, tmp_path: Path) -> Result:
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), photo(64, 96))
    words = ["predict", path, image, "--out", tmp_path / "out", "--trust-code"]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def assert_refused(result: Result, name: str, tmp_path: Path) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert name in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_damaged_files(export: Path, tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in sorted(export.parent.iterdir())}
    for name, whole in parts.items():
        (tmp_path / name).write_bytes(whole)
    assert predict(tmp_path / export.name, tmp_path).exit_code == 0
    shutil.rmtree(tmp_path / "out")
    for name, whole in parts.items():
        for damage in DAMAGES.values():
            damaged = damage(whole)
            assert damaged != whole
            (tmp_path / name).write_bytes(damaged)
            result = predict(tmp_path / export.name, tmp_path)
            assert_refused(result, export.stem, tmp_path)
        (tmp_path / name).unlink()
        assert_refused(predict(tmp_path / export.name, tmp_path), export.stem, tmp_path)
        (tmp_path / name).write_bytes(whole)


def test_models_of_other_software(export: Path, tmp_path: Path) -> None:
    """Valid models that were not written by `cgrseg export`."""
    path = tmp_path / export.name
    for part in export.parent.iterdir():
        shutil.copy(part, tmp_path)
    if export.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.save(model, path)
    elif export.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(export)  # it stays mapped
        del model.rt_info["cgrseg"]
        openvino.save_model(model, path)
    elif export.suffix == ".pt2":
        program = torch.export.export(_Network(), (torch.zeros(1, 3, *SIZE),))
        torch.export.save(program, path)
    else:
        described = path.with_suffix(".bin") if export.suffix == ".param" else path
        described.write_bytes(read_appended(described, "")[1])
    result = predict(path, tmp_path)
    assert_refused(result, export.stem, tmp_path)
    assert "without the description" in result.stderr


@pytest.mark.parametrize(
    ("place", "value"),
    [(8, b"\x63"), (6, b"\x01"), (-1, b"\x00")],
    ids=["an unknown compression", "encryption", "a damaged stream"],
)
def test_archives_that_zipfile_refuses_in_other_ways(
    place: int, value: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    about = description(kind="aoti", sizes=[SIZE], batch=1)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model/extra/{DESCRIPTION_FILE}", about.model_dump_json())
        archive.writestr("model/data/code", bytes(range(256)) * 8, zipfile.ZIP_DEFLATED)
        start = archive.getinfo("model/data/code").header_offset
    content = bytearray(path.read_bytes())
    if place < 0:  # the packed bytes
        begin = start + 30 + len("model/data/code")
        content[begin : begin + 8] = b"\xff" * 8
    else:  # the header of the member, and its copy in the directory
        listed = content.rindex(b"PK\x01\x02")
        for begin in (start + place, listed + place + 2):
            content[begin : begin + 1] = value
    path.write_bytes(content)
    result = predict(path, tmp_path)
    assert_refused(result, "model.pt2", tmp_path)
    assert "compiled package" in result.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_of_pytorch_is_not_a_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    content = io.BytesIO()
    torch.jit.save(torch.jit.trace(_Network(), torch.zeros(1, 3, *SIZE)), content)
    path.write_bytes(content.getvalue())
    assert_refused(predict(path, tmp_path), "model", tmp_path)
