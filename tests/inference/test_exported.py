"""Sizes, batches and pixels that an exported file takes, without any runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cgrseg import formats
from cgrseg.config.schema import TestConfig as Settings
from cgrseg.data.color import MEAN, STD
from cgrseg.errors import ConfigError, WeightsError
from cgrseg.formats import onnx_format
from cgrseg.formats.description import Description
from cgrseg.inference import Predictor, exported_backend
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.segmenting import fit_to_sizes, segment_batch
from cgrseg.inference.views import NetworkInput
from tests.inference.fixtures import BlockBackend, description, photo

BLOCKS = BlockBackend(num_classes=7)


def backend(seen: list[tuple[int, ...]], **changes: Any) -> ExportedBackend:
    """A file whose runtime is a function; it takes exactly what it was described to take."""

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        seen.append(array.shape)
        found: NDArray[np.generic] = BLOCKS.logits(torch.from_numpy(array)).numpy()
        return found

    return ExportedBackend(description(**changes), run, "x.onnx")


def test_smaller_inputs_are_padded_and_cut_back() -> None:
    seen: list[tuple[int, ...]] = []
    batch = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    found = backend(seen).logits(batch)
    assert seen == [(2, 3, 64, 96)]
    torch.testing.assert_close(found, BLOCKS.logits(batch), rtol=0, atol=1e-6)


def test_the_smallest_size_that_fits_is_taken() -> None:
    seen: list[tuple[int, ...]] = []
    taken = backend(seen, sizes=[(128, 128), (64, 96), (96, 64)])
    taken.logits(torch.zeros(1, 3, 96, 64))
    taken.logits(torch.zeros(1, 3, 64, 64))
    taken.logits(torch.zeros(1, 3, 96, 96))
    assert [shape[2:] for shape in seen] == [(96, 64), (64, 96), (128, 128)]
    with pytest.raises(ConfigError, match="160x32 pixels"):
        taken.logits(torch.zeros(1, 3, 160, 32))


def test_any_size_has_bounds_if_the_file_says_so() -> None:
    """Below them inputs are padded and cut back, above them refused."""
    seen: list[tuple[int, ...]] = []
    taken = backend(seen, sizes=None, smallest=96, largest=128)
    batch = torch.randn(1, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    found = taken.logits(batch)
    assert seen == [(1, 3, 96, 128)] and found.shape == (1, 7, 4, 16)
    torch.testing.assert_close(found, BLOCKS.logits(batch), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"96x160 pixels\s+expected: sides of at most 128"):
        taken.logits(torch.zeros(1, 3, 96, 160))
    free = backend(seen, sizes=None)
    free.logits(torch.zeros(1, 3, 32, 4096))
    assert seen[-1] == (1, 3, 32, 4096)


def test_a_runtime_that_fails_is_a_message() -> None:
    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        raise AssertionError("Guard failed: side != 1\nmore")

    taken = ExportedBackend(description(), run, "x.pt2")
    with pytest.raises(WeightsError) as caught:
        taken.logits(torch.zeros(2, 3, 64, 96))
    assert "x.pt2: its runtime failed on an input of 2x3x64x96 (Guard failed: side != 1)" in str(
        caught.value
    )


def test_what_a_file_for_pixels_sees() -> None:
    """Padding is the whole number next to the mean there, not the mean."""
    batch = torch.zeros(1, 3, 32, 32)
    taken = ExportedBackend(description(takes="pixels"), lambda array: array, "x.onnx")
    wanted = [
        (whole - mean) / std for whole, mean, std in zip((124, 116, 104), MEAN, STD, strict=True)
    ]
    found = taken.seen(batch)
    assert found.shape == (1, 3, 64, 96)
    assert torch.allclose(found, torch.tensor(wanted).view(1, 3, 1, 1).expand(1, 3, 64, 96))
    plain = ExportedBackend(description(), lambda array: array, "x.onnx")
    assert torch.equal(plain.seen(batch), torch.zeros(1, 3, 64, 96))


def test_test_settings_of_a_newer_version_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = backend([], test={"scale": [96, 64], "from_the_future": 1})
    monkeypatch.setattr("cgrseg.inference.predictor.open_exported", lambda *_rest, **_named: newer)
    with pytest.raises(WeightsError, match=r"new\.onnx: test settings that cannot be used"):
        Predictor.from_pretrained(tmp_path / "new.onnx")


def test_freed_memory_is_kept_unless_a_file_is_only_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(exported_backend, "keep_freed_memory", lambda: told.append("kept"))
    opened = description(), lambda array: array
    monkeypatch.setattr(onnx_format.OnnxFormat, "open", lambda *_rest: opened)
    file = tmp_path / "x.onnx"
    file.touch()
    formats.describe(file)
    exported_backend.open_exported(file, keep_memory=False)
    assert told == []
    exported_backend.open_exported(file)
    assert told == ["kept"]


def test_a_fixed_batch_is_filled_and_cut() -> None:
    seen: list[tuple[int, ...]] = []
    batch = torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = backend(seen, batch=2).logits(batch)
    assert seen == [(2, 3, 64, 96)] * 3
    torch.testing.assert_close(found, BLOCKS.logits(batch), rtol=0, atol=1e-6)


def test_pixels_are_given_back_exactly() -> None:
    """Every 8-bit value survives; padding becomes the whole number next to the mean."""
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    picture = np.repeat(np.repeat(values, 4, axis=0)[:, :, None], 3, axis=2)  # 32x32
    got: list[NDArray[np.generic]] = []

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        got.append(array.copy())
        return np.zeros((1, 7, 8, 12), np.float32)

    taken = ExportedBackend(description(takes="pixels"), run, "x.onnx")
    taken.logits(NetworkInput.of(picture, Settings(resize="none")).tensor)
    assert got[0].dtype == np.uint8 and got[0].shape == (1, 64, 96, 3)
    assert np.array_equal(got[0][0, :32, :32], picture)
    assert got[0][0, 40, 40].tolist() == [124, 116, 104]


def test_label_maps_are_cut_and_resized() -> None:
    """A file of 64x96; a photo of twice that size gets each label four times."""
    labels = np.random.default_rng(0).integers(0, 7, (1, 64, 96)).astype(np.uint8)
    taken = ExportedBackend(description(gives="labels"), lambda array: labels, "x.onnx")
    predictor = Predictor(taken, Settings(), list("abcdefg"))
    found = predictor(photo(128, 192)).labels
    assert np.array_equal(found, labels[0].repeat(2, axis=0).repeat(2, axis=1))
    narrow = predictor(photo(128, 64)).labels  # resized to 64x32
    assert np.array_equal(narrow, labels[0, :, :32].repeat(2, axis=0).repeat(2, axis=1))
    with pytest.raises(ConfigError, match="--output logits"):
        predictor(photo(64, 96), confidence=True)


def test_a_runtime_of_its_own_leaves_the_threads_of_pytorch_alone() -> None:
    seen: list[int] = []

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        seen.append(torch.get_num_threads())
        if array.shape[0] > 1:
            raise RuntimeError("too many")
        return np.zeros((1, 7, array.shape[2] // 8, array.shape[3] // 8), np.float32)

    taken = ExportedBackend(description(sizes=None), run, "x")
    settings = Settings(resize="none")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        segment_batch(taken, [photo(64, 64)], settings)
        assert seen == [2] and torch.get_num_threads() == 2
        with pytest.raises(WeightsError, match="too many"):
            segment_batch(taken, [photo(64, 64)] * 2, settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((128, 192), (96, 64)),  # fills 64x96 exactly
        ((480, 640), (96, 72)),  # 96x72 within 96x96: larger than 85x64 within 64x96
        ((640, 480), (96, 72)),
        ((30, 200), (96, 14)),
    ],
)
def test_photos_fill_a_size_as_well_as_they_can(
    shape: tuple[int, int], scale: tuple[int, int]
) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    sizes = [(64, 96)] if shape in ((128, 192), (30, 200)) else [(64, 96), (96, 96)]
    fitted = fit_to_sizes(Settings(scale=(2048, 512)), picture, sizes)
    assert fitted.scale == scale and fitted.resize == "keep_ratio"


def test_settings_that_fit_already_stay() -> None:
    picture = np.zeros((60, 90, 3), np.uint8)
    config = Settings(resize="none")
    assert fit_to_sizes(config, picture, [(64, 96)]) is config
    assert fit_to_sizes(config, picture, None) is config


def test_descriptions_of_others_are_refused(tmp_path: Any) -> None:
    for text, message in (
        (None, "without the description"),
        ("{}", "cannot be understood"),
        (description(format=9).model_dump_json(), "of format 9"),
    ):
        with pytest.raises(WeightsError, match=message):
            Description.read(text, tmp_path / "x.onnx")
    again = Description.read(description().model_dump_json(), tmp_path / "x.onnx")
    assert again == description()


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 999_999_999},
        {"batch": 0},
        {"smallest": 1 << 40},
        {"sizes": [(64, 1 << 62)]},
        {"num_classes": 1 << 40},
    ],
)
def test_descriptions_of_impossible_sizes_are_refused(
    changes: dict[str, Any], tmp_path: Any
) -> None:
    text = description().model_copy(update=changes).model_dump_json()
    with pytest.raises(WeightsError, match="cannot be understood"):
        Description.read(text, tmp_path / "x.onnx")
