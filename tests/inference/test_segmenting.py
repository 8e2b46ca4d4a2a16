"""Every mode against the plain computation, which holds all logits at full size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.config import load_config
from cgrseg.config.schema import TestConfig
from cgrseg.data.image_files import read_image
from cgrseg.errors import ConfigError, DataError
from cgrseg.inference import decode
from cgrseg.inference.backends import Backend, TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.compiled_cache import missing_compiler
from cgrseg.inference.segmenting import (
    PUBLISHED_RATIOS,
    augmented,
    plan,
    segment,
    segment_batch,
    segment_group,
)
from cgrseg.inference.views import EvalTransform, at_ratio
from cgrseg.models import CGRSeg, create_model
from cgrseg.ops import resized_rows
from tests.golden_weights import set_golden_weights
from tests.inference.fixtures import BlockBackend, photo


def plain(backend: Backend, image: NDArray[np.uint8], config: TestConfig) -> Tensor:
    """Averaged probabilities (K, H, W), written down as mmsegmentation does it."""
    total = torch.zeros(backend.num_classes, *image.shape[:2])
    directions = (False, True) if config.flip else (False,)
    for ratio in config.ratios:
        transform = EvalTransform(at_ratio(config, ratio, image))
        resized = transform.resize(image)
        height, width = resized.shape[:2]
        for flipped in directions:
            directed = np.ascontiguousarray(resized[:, ::-1]) if flipped else resized
            tensor = torch.from_numpy(transform.normalize(directed))
            padded = F.pad(tensor, (0, -width % config.divisor, 0, -height % config.divisor))[None]
            if config.mode == "slide":
                logits = slide(backend, padded, config)
            else:
                logits = upsampled(backend, padded)
            logits = F.interpolate(
                logits[:, :, :height, :width], size=image.shape[:2], mode="bilinear"
            )
            probability = logits.softmax(dim=1)[0]
            total += probability.flip(2) if flipped else probability
    return total / (len(config.ratios) * len(directions))


def upsampled(backend: Backend, tensor: Tensor) -> Tensor:
    """Logits at the input's size; the input is padded to a multiple of 32 for the network."""
    height, width = tensor.shape[2:]
    fed = F.pad(tensor, (0, -width % 32, 0, -height % 32))
    logits = F.interpolate(backend.logits(fed), size=fed.shape[2:], mode="bilinear")
    return logits[:, :, :height, :width]


def slide(backend: Backend, padded: Tensor, config: TestConfig) -> Tensor:
    """Window logits added up and divided by how often each pixel was seen."""
    height, width = padded.shape[2:]
    (crop_h, crop_w), (stride_h, stride_w) = config.crop_size, config.stride
    total = torch.zeros(1, backend.num_classes, height, width)
    count = torch.zeros(1, 1, height, width)
    for row in range(max(height - crop_h + stride_h - 1, 0) // stride_h + 1):
        for column in range(max(width - crop_w + stride_w - 1, 0) // stride_w + 1):
            bottom = min(row * stride_h + crop_h, height)
            right = min(column * stride_w + crop_w, width)
            top, left = max(bottom - crop_h, 0), max(right - crop_w, 0)
            total[:, :, top:bottom, left:right] += upsampled(
                backend, padded[:, :, top:bottom, left:right]
            )
            count[:, :, top:bottom, left:right] += 1
    return total / count


def assert_same_labels(found: NDArray[np.integer], expected: Tensor) -> None:
    """Equal wherever the two best classes differ by more than rounding."""
    best = expected.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-5).numpy()
    assert clear.mean() > 0.9
    assert np.array_equal(found[clear], expected.argmax(dim=0).numpy()[clear])


sides = st.integers(20, 150)


@settings(deadline=None, max_examples=40)
@given(
    height=sides,
    width=sides,
    crop=st.tuples(st.integers(8, 100), st.integers(8, 100)),
    stride=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    ratios=st.sampled_from([[1.0], [0.5, 1.3], [0.75]]),
    flip=st.booleans(),
    resize=st.sampled_from(["none", "keep_ratio", "keep_ratio_divisible"]),
)
def test_slide_with_any_window_and_stride(
    height: int,
    width: int,
    crop: tuple[int, int],
    stride: tuple[int, int],
    ratios: list[float],
    flip: bool,
    resize: str,
) -> None:
    config = TestConfig(
        mode="slide",
        crop_size=crop,
        stride=(min(stride[0], crop[0]), min(stride[1], crop[1])),
        scale=(160, 96),
        resize=resize,  # type: ignore[arg-type]
        ratios=ratios,
        flip=flip,
    )
    backend, image = BlockBackend(), photo(height, width)
    assert_same_labels(segment(backend, image, config).labels, plain(backend, image, config))


@settings(deadline=None, max_examples=30)
@given(
    height=sides,
    width=sides,
    ratios=st.sampled_from([[1.0], [0.5, 1.0, 1.75]]),
    flip=st.booleans(),
    resize=st.sampled_from(["none", "keep_ratio", "keep_ratio_divisible"]),
    divisor=st.sampled_from([1, 32, 48]),
)
def test_whole_images_of_any_size(
    height: int, width: int, ratios: list[float], flip: bool, resize: str, divisor: int
) -> None:
    config = TestConfig(
        scale=(160, 96),
        resize=resize,  # type: ignore[arg-type]
        ratios=ratios,
        flip=flip,
        divisor=divisor,
    )
    backend, image = BlockBackend(), photo(height, width)
    expected = plain(backend, image, config)
    found = segment(backend, image, config, confidence=True)
    assert_same_labels(segment(backend, image, config).labels, expected)
    assert_same_labels(found.labels, expected)
    assert found.confidence is not None
    np.testing.assert_allclose(found.confidence, expected.amax(dim=0), atol=1e-4)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TestConfig(
        mode="slide", crop_size=(64, 64), stride=(43, 43), resize="none", flip=True, ratios=[1.0]
    )
    backend, image = BlockBackend(), photo(150, 210)
    expected = segment(backend, image, config)
    monkeypatch.setattr(resized_rows, "BLOCK", 7 * 8)
    monkeypatch.setattr(decode, "STRIP", 9)
    assert np.array_equal(segment(backend, image, config).labels, expected.labels)
    whole = TestConfig(resize="none")
    fused = segment(backend, image, whole).labels
    monkeypatch.setattr(decode, "WholeView", ())  # no view is taken for one
    assert (segment(backend, image, whole).labels == fused).mean() > 0.9999


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_matrix_products_of_the_process_change_nothing(precision: str) -> None:
    # "medium" is bfloat16 on processors that have it, "high" TF32 on GPUs.
    config = TestConfig(
        mode="slide", crop_size=(64, 64), stride=(43, 43), resize="none", flip=True, ratios=[1.0]
    )

    class Exact(BlockBackend):
        """The network's own products are not what is asked about."""

        def logits(self, batch: Tensor) -> Tensor:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            found = super().logits(batch)
            torch.set_float32_matmul_precision(before)
            return found

    backend, image = Exact(40), photo(150, 210)
    expected = segment(backend, image, config, confidence=True)
    torch.set_float32_matmul_precision(precision)
    try:
        found = segment(backend, image, config, confidence=True)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (found.labels == expected.labels).mean() > 0.9999
    assert found.confidence is not None and expected.confidence is not None
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=0, atol=1e-5)


def test_each_window_runs_once_and_is_forgotten() -> None:
    config = TestConfig(mode="slide", crop_size=(64, 64), stride=(32, 32), resize="none")
    backend = BlockBackend()
    segment(backend, photo(256, 128), config)
    assert len(backend.seen) == 7 * 3  # rows and columns of windows
    assert set(backend.seen) == {(1, 3, 64, 64)}


def test_batch_of_mixed_sizes_keeps_the_order() -> None:
    backend, config = BlockBackend(), TestConfig(scale=(160, 96))
    # At short side 96 the network gets 96x128, 96x96, 96x128 (padded from 96x123) and 128x96.
    sizes = [(90, 120), (60, 60), (75, 96), (120, 90)]
    images = [photo(*size, seed=number) for number, size in enumerate(sizes)]
    found = segment_batch(backend, images, config)
    assert sorted(backend.seen) == [(1, 3, 96, 96), (1, 3, 128, 96), (2, 3, 96, 128)]
    for image, one in zip(images, found, strict=True):
        assert np.array_equal(one.labels, segment(BlockBackend(), image, config).labels)
    backend.seen.clear()
    segment_batch(backend, images, config, batch_size=1)
    assert [shape[0] for shape in backend.seen] == [1, 1, 1, 1]


def test_published_ratios() -> None:
    config = augmented(TestConfig())
    assert tuple(config.ratios) == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) == PUBLISHED_RATIOS
    assert config.flip


def test_nan_from_the_network_is_an_error_in_every_mode() -> None:
    class Broken(BlockBackend):
        def logits(self, batch: Tensor) -> Tensor:
            return super().logits(batch) / 0

    for config in (TestConfig(resize="none"), TestConfig(resize="none", flip=True)):
        with pytest.raises(DataError, match="NaN or infinite"):
            segment(Broken(), photo(40, 40), config)


def test_no_ratios_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"test\.ratios: got \[\]"):
        load_config("cgrseg-t_custom", {"test.ratios": []})


def test_more_than_256_classes_need_two_bytes() -> None:
    found = segment(BlockBackend(300), photo(64, 64), TestConfig(resize="none"))
    assert found.labels.dtype == np.int16 and found.labels.max() > 255


GOLDEN_MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("single", {}),
    "flip": ("flip", {"flip": True}),
    "multiscale_flip": ("multiscale_flip", {"ratios": [0.875, 1.0, 1.125], "flip": True}),
    "slide": ("slide_512_341", {"mode": "slide"}),
    "pascal_context": (
        "pascal_context_520",
        {"scale": (520, 520), "resize": "keep_ratio_divisible"},
    ),
}


class WithBias(Backend):
    """A backend whose classifier has another bias.

    Exactly what the network with that bias gives: the classifier's bias is added to the
    logits, and the softmax over positions that forms the class centres does not see it.
    So one compilation serves all goldens.
    """

    def __init__(self, backend: Backend, change: Tensor) -> None:
        self.backend = backend
        self.device, self.num_classes = backend.device, backend.num_classes
        self.change = change[:, None, None]

    def logits(self, batch: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return self.backend.logits(batch) + self.change


@pytest.fixture(scope="module")
def golden_network() -> CGRSeg:
    model = create_model("cgrseg_t").eval()
    set_golden_weights(model)
    return model


@pytest.fixture(scope="module")
def folded(golden_network: CGRSeg, tmp_path_factory: pytest.TempPathFactory) -> CompiledBackend:
    """The folded network, never compiled."""
    folder = tmp_path_factory.mktemp("folded")
    return CompiledBackend(golden_network, folder=folder, compile_after=0)


@pytest.fixture(scope="module")
def compiled(golden_network: CGRSeg, tmp_path_factory: pytest.TempPathFactory) -> CompiledBackend:
    """The same compiled, every size from its first image on."""
    if lacking := missing_compiler(torch.device("cpu")):
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("compiled")
    return CompiledBackend(golden_network, folder=folder, compile_after=1)


def check_published(
    name: str, golden_dir: Path, model: CGRSeg, backend: Backend | None = None
) -> None:
    """Compare a mode's label map with the published code's; by the plain network if none else."""
    key, changes = GOLDEN_MODES[name]
    bias = torch.from_numpy(np.load(golden_dir / "conv_seg_bias.npz")[key])
    own = model.get_parameter("decode_head.conv_seg.bias")
    if backend is None:
        plain = copy.deepcopy(model)
        with torch.no_grad():
            plain.get_parameter("decode_head.conv_seg.bias").copy_(bias)
        backend = TorchBackend(plain)
    else:
        backend = WithBias(backend, bias - own.detach())
    picture = read_image(golden_dir / "photo.png")
    expected = cv2.imread(str(golden_dir / f"predict_{name}.png"), cv2.IMREAD_UNCHANGED)
    found = segment(backend, picture, TestConfig(**changes))
    assert found.labels.shape == (300, 420)
    agreement = (found.labels == expected).mean()
    assert agreement >= 0.999, f"{100 * agreement:.3f} % of pixels agree"


@pytest.mark.parametrize("name", GOLDEN_MODES)
def test_published_label_maps(name: str, golden_dir: Path, golden_network: CGRSeg) -> None:
    check_published(name, golden_dir, golden_network)


@pytest.mark.parametrize("name", GOLDEN_MODES)
def test_published_label_maps_from_the_folded_network(
    name: str, golden_dir: Path, golden_network: CGRSeg, folded: CompiledBackend
) -> None:
    check_published(name, golden_dir, golden_network, folded)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_MODES)
def test_published_label_maps_from_the_compiled_network(
    name: str, golden_dir: Path, golden_network: CGRSeg, compiled: CompiledBackend
) -> None:
    check_published(name, golden_dir, golden_network, compiled)
    assert compiled.seconds_preparing > 0
    assert not compiled._refused


def test_coarse_confidence_changes_no_label_and_has_the_mean_of_the_fine_one() -> None:
    backend = BlockBackend(5)
    image = photo(200, 312)
    fine = segment(backend, image, TestConfig(), confidence=True)
    planned = [plan(backend, image, TestConfig())]
    (coarse,) = segment_group(backend, planned, confidence="coarse")
    assert np.array_equal(coarse.labels, fine.labels)
    assert coarse.confidence is not None and fine.confidence is not None
    assert coarse.confidence.shape == (25, 39)
    assert coarse.confidence.mean() == pytest.approx(fine.confidence.mean(), abs=0.01)
