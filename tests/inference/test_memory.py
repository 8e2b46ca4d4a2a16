"""Memory stays bounded whatever the image's size, the classes and the views."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cgrseg.config.schema import TestConfig
from cgrseg.inference.backends import TorchBackend
from cgrseg.inference.modes import augmented, segment
from cgrseg.models import create_model
from tests.golden_weights import set_golden_weights
from tests.inference.fixtures import BlockBackend, photo
from tests.inference.test_modes import assert_same_labels, plain

GIBIBYTE = 1 << 30

# Windows lie at 0, 341, 682, ... so that in the first 853 pixels of both axes only the first
# two of each count, and up to 682 pixels the label map is that of a small image of 853 x 853.
CORNER, SAME = 853, 682

PROGRAM = """
import json, resource, sys
import numpy as np
from cgrseg.config.schema import TestConfig
from cgrseg.inference.modes import augmented, segment
from tests.inference.fixtures import BlockBackend, photo

height, width, slide, multiscale, target = json.loads(sys.argv[1])
tile = photo(1000, 1000, 7)
image = np.tile(tile, (-(-height // 1000), -(-width // 1000), 1))[:height, :width]
config = TestConfig(resize="none", divisor=1, mode="slide" if slide else "whole")
found = segment(BlockBackend(150), image, augmented(config) if multiscale else config)
assert found.labels.shape == (height, width)
np.save(target, found.labels[:SAME, :SAME])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(
    repository: Path, target: Path, size: tuple[int, int], slide: bool, multiscale: bool
) -> int:
    """Peak resident bytes of a fresh process that labels an image of this size."""
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM.replace("SAME", str(SAME)),
            json.dumps([*size, slide, multiscale, str(target)]),
        ],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


@pytest.mark.slow
def test_a_hundred_megapixels_with_150_classes(repository: Path, tmp_path: Path) -> None:
    target = tmp_path / "corner.npy"
    assert peak(repository, target, (9000, 12000), slide=True, multiscale=False) < 4 * GIBIBYTE
    corner = photo(1000, 1000, 7)[:CORNER, :CORNER]
    config = TestConfig(resize="none", divisor=1, mode="slide")
    expected = plain(BlockBackend(150), corner, config)[:, :SAME, :SAME]
    assert_same_labels(np.load(target), expected)


@pytest.mark.slow
@pytest.mark.parametrize("slide", [False, True])
def test_every_scale_and_flip_of_a_native_image(
    slide: bool, repository: Path, tmp_path: Path
) -> None:
    used = peak(repository, tmp_path / "x.npy", (1024, 2048), slide=slide, multiscale=True)
    assert used < 4 * GIBIBYTE


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_the_network_at_every_scale_equals_the_plain_computation(mode: str) -> None:
    model = create_model("cgrseg_t")
    set_golden_weights(model)
    config = augmented(
        TestConfig(resize="none", mode=mode, crop_size=(96, 96), stride=(64, 64))  # type: ignore[arg-type]
    )
    image = photo(100, 140)
    backend = TorchBackend(model)
    expected = plain(backend, image, config).detach()
    found = segment(backend, image, config).labels
    assert (found == expected.argmax(dim=0).numpy()).mean() > 0.999
