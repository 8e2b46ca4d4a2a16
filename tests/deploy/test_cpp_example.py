"""The C++ example: its headers against Python's functions, and the program built by CMake."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cgrseg import ops
from cgrseg.config.schema import TestConfig as Settings
from cgrseg.data.geometry import resize_image
from cgrseg.deploy import export
from cgrseg.inference import Predictor
from cgrseg.inference.segmenting import fit_to_sizes
from cgrseg.inference.views import EvalTransform
from tests.inference.fixtures import photo

Size = tuple[int, int]
EXAMPLE = Path(__file__).parents[2] / "examples/cpp"
GAP = 1e-5
GLUE = """
#include "image.hpp"
#include <cstring>

extern "C" int upsample_argmax(const float* logits, const int* n, int* labels) {
    try {
        const auto found = cgrseg::upsample_argmax(logits, n[0], {n[1], n[2]}, {n[3], n[4]},
                                                   {n[5], n[6]}, {n[7], n[8]});
        std::memcpy(labels, found.data(), found.size() * sizeof(int));
        return 0;
    } catch (const std::invalid_argument&) {
        return 1;
    }
}

extern "C" void resize(const unsigned char* pixels, const int* n, unsigned char* resized) {
    const auto bytes = std::size_t{3} * static_cast<std::size_t>(n[0] * n[1]);
    const cgrseg::Image image{{n[0], n[1]}, {pixels, pixels + bytes}};
    const auto found = cgrseg::resize(image, {n[2], n[3]});
    std::memcpy(resized, found.pixels.data(), found.pixels.size());
}

extern "C" void fitted_size(int* n) {
    const auto found = cgrseg::fitted_size({n[0], n[1]}, {n[2], n[3]});
    n[0] = found.height;
    n[1] = found.width;
}
"""


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: g++ or clang++")
    folder = tmp_path_factory.mktemp("headers")
    (folder / "glue.cpp").write_text(GLUE)
    words = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command = [compiler, *words, f"-I{EXAMPLE}", "glue.cpp", "-o", "glue.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield ctypes.CDLL(str(folder / "glue.so"))


def test_the_sketch_for_ios_compiles(headers: ctypes.CDLL) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++") or ""
    sketch = EXAMPLE.parent / "ios/segmenter.cpp"
    words = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    done = subprocess.run([compiler, *words, sketch], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def numbers(*values: int) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * len(values))(*values)


def labels_of(
    library: ctypes.CDLL, logits: NDArray[np.float32], input_size: Size, crop: Size, size: Size
) -> NDArray[np.intc] | None:
    """None: refused."""
    labels = np.full(size, -1, np.intc)
    counts = numbers(*logits.shape, *input_size, *crop, *size)
    pointers = (logits.ctypes.data_as(ctypes.c_void_p), labels.ctypes.data_as(ctypes.c_void_p))
    return None if library.upsample_argmax(pointers[0], counts, pointers[1]) else labels


sides = st.integers(1, 12)
pixels = st.integers(1, 70)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 40),
    grid=st.tuples(sides, sides),
    stride=st.integers(1, 9),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(pixels, pixels),
    smooth=st.booleans(),
)
def test_labels_are_those_of_python(
    headers: ctypes.CDLL,
    seed: int,
    classes: int,
    grid: Size,
    stride: int,
    cut: tuple[float, float],
    size: Size,
    smooth: bool,
) -> None:
    draws = np.random.default_rng(seed)
    logits = draws.standard_normal((classes, *grid)).astype(np.float32)
    if smooth:  # most windows have one winner
        logits = (logits + 4 * draws.standard_normal((classes, 1, 1))).astype(np.float32)
    input_size = (grid[0] * stride, grid[1] * stride)
    crop = (max(1, round(cut[0] * input_size[0])), max(1, round(cut[1] * input_size[1])))
    found = labels_of(headers, logits, input_size, crop, size)
    assert found is not None
    steps = {"input_size": input_size, "crop": crop}
    batch = torch.from_numpy(logits)[None]
    wanted = ops.upsample_argmax(batch, size, **steps)[0].numpy()  # type: ignore[arg-type]
    two = ops.upsample_topk(batch.double(), size, min(2, classes), **steps)  # type: ignore[arg-type]
    shares = two[1][0].log().numpy()
    clear = shares[0] - shares[-1] > GAP if classes > 1 else np.ones(size, bool)
    assert np.array_equal(found[clear], wanted[clear])
    assert (found >= 0).all() and (found < classes).all()
    assert clear.mean() > 0.9


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 40),
    levels=st.integers(1, 4),
    scale=st.sampled_from([1, 2, 4, 8]),
)
def test_ties_go_to_the_smallest_index(
    headers: ctypes.CDLL, seed: int, classes: int, levels: int, scale: int
) -> None:
    """Small whole numbers at a scale of 2^n: every sum is exact, ties abound."""
    draws = np.random.default_rng(seed)
    logits = draws.integers(0, levels, (classes, 6, 5)).astype(np.float32)
    size = (6 * scale, 5 * scale)
    wanted = ops.upsample_argmax_reference(torch.from_numpy(logits)[None].double(), size)[0]
    found = labels_of(headers, logits, size, size, size)
    assert found is not None and np.array_equal(found, wanted.numpy())


def test_what_the_header_refuses(headers: ctypes.CDLL) -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    assert labels_of(headers, logits, (24, 32), (20, 32), (9, 7)) is not None
    assert labels_of(headers, logits, (24, 32), (25, 32), (9, 7)) is None
    assert labels_of(headers, logits, (24, 32), (0, 32), (9, 7)) is None
    for value in (np.nan, np.inf):
        logits[1, 2, 3] = value
        assert labels_of(headers, logits, (24, 32), (20, 32), (9, 7)) is None


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1), source=st.tuples(pixels, pixels), size=st.tuples(pixels, pixels)
)
def test_images_are_resized_as_opencv_does_it(
    headers: ctypes.CDLL, seed: int, source: Size, size: Size
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*source, 3), dtype=np.uint8)
    found = np.empty((*size, 3), np.uint8)
    pointers = (image.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p))
    headers.resize(pointers[0], numbers(*source, *size), pointers[1])
    assert np.array_equal(found, resize_image(image, size))


@settings(deadline=None, max_examples=100)
@given(image=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), strides=st.tuples(sides, sides))
def test_the_fitted_size_is_that_of_python(
    headers: ctypes.CDLL, image: Size, strides: Size
) -> None:
    size = (32 * strides[0], 32 * strides[1])
    array = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (*image, 3))
    config = fit_to_sizes(Settings(scale=(1, 1)), array, [size])
    found = numbers(*image, *size)
    headers.fitted_size(found)
    if config.scale != (1, 1):
        assert tuple(found[:2]) == EvalTransform(config).size_for(image)


@pytest.mark.slow
def test_the_program_labels_as_python_does(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra [export]")
    from openvino.utils import get_cmake_path

    if shutil.which("cmake") is None or not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs CMake and a C++ compiler")
    build, flags = tmp_path / "build", "-Werror"
    for words in (
        ["-S", EXAMPLE, "-B", build, f"-DOpenVINO_DIR={get_cmake_path()}"],
        ["--build", build],
    ):
        command = ["cmake", *map(str, words)]
        if "-S" in words:
            command.append(f"-DCMAKE_CXX_FLAGS={flags}")
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    model = tmp_path / "model.xml"
    export(checkpoint, "openvino", model, sizes=[(64, 96)], takes="pixels")
    predictor = Predictor.from_pretrained(model)
    for number, size in enumerate([(64, 96), (301, 200), (128, 192), (30, 200), (480, 640)]):
        picture = photo(*size, seed=number)
        ppm, pgm = tmp_path / "picture.ppm", tmp_path / "labels.pgm"
        cv2.imwrite(str(ppm), picture[:, :, ::-1])
        done = subprocess.run([build / "segment", model, ppm, pgm], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        found = cv2.imread(str(pgm), cv2.IMREAD_UNCHANGED)
        assert found is not None and np.array_equal(found, predictor(picture).labels)
    (tmp_path / "cut.ppm").write_bytes(ppm.read_bytes()[:-1])
    (tmp_path / "huge.ppm").write_bytes(b"P6 30000 30000 255\n")
    for wrong, message, target in (
        ("cut.ppm", "cut short", "out.pgm"),
        ("huge.ppm", "cut short", "out.pgm"),
        ("labels.pgm", "expected a binary PPM file", "out.pgm"),
        ("missing.ppm", "there is no such file", "out.pgm"),
        ("picture.ppm", "cannot be written", "build"),
    ):
        command = [str(build / "segment"), str(model), str(tmp_path / wrong), target]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out.pgm").exists() and not list(tmp_path.glob("*.partial"))
