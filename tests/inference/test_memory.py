"""Memory of the real network stays bounded: whole processes, at their largest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cgrseg.config.schema import TestConfig
from cgrseg.inference.backends import TorchBackend
from cgrseg.inference.segmenting import augmented, segment
from cgrseg.inference.views import EvalTransform
from cgrseg.models import attention_parts, create_model
from tests.golden_weights import set_golden_weights
from tests.inference.fixtures import photo
from tests.inference.test_segmenting import plain

GIBIBYTE = 1 << 30

# Windows lie at 0, 341, 682, ... so that in the first 853 pixels of both axes only the first
# two of each count, and up to 682 pixels the label map is that of a small image of 853 x 853.
CORNER, SAME = 853, 682

PROGRAM = """
import json, resource, sys, time
import numpy as np
from cgrseg.config.schema import TestConfig
from cgrseg.inference.segmenting import augmented, segment
from tests.inference.fixtures import photo
from tests.inference.test_memory import backend_of

height, width, slide, multiscale, bias, target = json.loads(sys.argv[1])
tile = photo(1000, 1000, 7)
image = np.tile(tile, (-(-height // 1000), -(-width // 1000), 1))[:height, :width]
config = TestConfig(resize="none", divisor=1, mode="slide" if slide else "whole")
backend, begun = backend_of(bias), time.monotonic()
found = segment(backend, image, augmented(config) if multiscale else config)
assert found.labels.shape == (height, width)
np.save(target, found.labels[:SAME, :SAME])
print(f"{time.monotonic() - begun:.0f} s, {len(np.unique(found.labels))} classes", file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def backend_of(bias: str) -> TorchBackend:
    """CGRSeg-T with 150 classes, and a file with the bias of one golden's classifier."""
    model = create_model("cgrseg_t")
    set_golden_weights(model)
    file, key = bias.split("::")
    with torch.no_grad():
        model.get_parameter("decode_head.conv_seg.bias").copy_(torch.from_numpy(np.load(file)[key]))
    return TorchBackend(model)


def peak(
    repository: Path, target: Path, size: tuple[int, int], slide: bool, multiscale: bool, bias: str
) -> int:
    """Peak resident bytes of a fresh process that labels an image of this size."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM.replace("SAME", str(SAME)),
            json.dumps([*size, slide, multiscale, bias, str(target)]),
        ],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    used = int(finished.stdout)
    print(f"{size}: {used / GIBIBYTE:.2f} GiB at most, {finished.stderr.strip()}")
    return used


@pytest.mark.slow
def test_a_hundred_megapixels_with_150_classes(
    repository: Path, golden_dir: Path, tmp_path: Path
) -> None:
    target, bias = tmp_path / "corner.npy", f"{golden_dir / 'conv_seg_bias.npz'}::slide_512_341"
    used = peak(repository, target, (9000, 12000), slide=True, multiscale=False, bias=bias)
    assert used < 4 * GIBIBYTE
    corner = photo(1000, 1000, 7)[:CORNER, :CORNER]
    config = TestConfig(resize="none", divisor=1, mode="slide")
    with torch.inference_mode():
        expected = plain(backend_of(bias), corner, config)[:, :SAME, :SAME]
    best = expected.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4 * best[0]).numpy()
    found, labels = np.load(target), expected.argmax(dim=0).numpy()
    assert clear.mean() > 0.99 and len(np.unique(labels)) > 3
    assert np.array_equal(found[clear], labels[clear])


@pytest.mark.slow
@pytest.mark.parametrize("slide", [False, True])
def test_every_scale_and_flip_of_a_native_image(
    slide: bool, repository: Path, golden_dir: Path, tmp_path: Path
) -> None:
    bias = f"{golden_dir / 'conv_seg_bias.npz'}::multiscale_flip"
    target = tmp_path / "x.npy"
    used = peak(repository, target, (1024, 2048), slide=slide, multiscale=True, bias=bias)
    assert used < 4 * GIBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_every_scale_equals_the_plain_computation(
    mode: str, golden_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(f"{golden_dir / 'conv_seg_bias.npz'}::multiscale_flip")
    config = augmented(
        TestConfig(resize="none", mode=mode, crop_size=(96, 96), stride=(64, 64))  # type: ignore[arg-type]
    )
    image = photo(160, 224)
    let_classes_meet(backend, image)
    with torch.inference_mode():
        expected = plain(backend, image, config)
    # As on a large image: attention goes through its queries in many parts.
    monkeypatch.setitem(attention_parts.PART_BYTES, "cpu", 1 << 12)
    found = segment(backend, image, config).labels
    best = expected.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4 * best[0]).numpy()
    labels = expected.argmax(dim=0).numpy()
    assert clear.mean() > 0.99 and len(np.unique(labels)) > 3
    assert np.array_equal(found[clear], labels[clear])


def let_classes_meet(backend: TorchBackend, image: NDArray[np.uint8]) -> None:
    """Take from each class what it has on the average over an image, so that many of them win."""
    tensor = torch.from_numpy(EvalTransform(TestConfig(resize="none")).normalize(image)[None])
    mean = backend.logits(tensor).mean(dim=(0, 2, 3))
    with torch.no_grad():
        backend.model.get_parameter("decode_head.conv_seg.bias").sub_(mean)
