"""The comparison itself: what it looks at, and that a small fault does not pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cgrseg.deploy import Tolerance
from cgrseg.deploy.export import describe_export
from cgrseg.deploy.verify import as_input, compare, sample_images, verify
from cgrseg.errors import WeightsError
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.models import CGRSeg
from cgrseg.ops import upsample_argmax


def backend(network: CGRSeg, seen: list[Any], **changes: Any) -> ExportedBackend:
    """An exact file for any size from 96 pixels on, whose runtime is the network itself."""

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        seen.append(array.copy())
        pixels = changes.get("takes") == "pixels"
        batch = as_input(array) if pixels else torch.from_numpy(array)  # type: ignore[arg-type]
        logits = network(batch)
        if changes.get("gives") == "labels":
            return upsample_argmax(logits, (batch.shape[2], batch.shape[3])).numpy()
        return logits.numpy()

    about = describe_export(network, network, "pt2", None, None, "normalised", "logits")
    return ExportedBackend(about.model_copy(update={"smallest": 96, **changes}), run, "x.pt2")


@pytest.mark.parametrize("takes", ["normalised", "pixels"])
@pytest.mark.parametrize("gives", ["logits", "labels"])
def test_padded_inputs_are_compared_like_with_like(network: CGRSeg, takes: str, gives: str) -> None:
    exact = backend(network, [], takes=takes, gives=gives)
    for size in ((32, 64), (96, 128)):
        check = compare(exact, network, as_input(sample_images(2, size)))
        assert check.within(Tolerance(logits=1e-5)), (size, check)
        assert check.size == size and check.images == 2


def test_three_pictures_that_differ_for_each_size_and_batch(network: CGRSeg) -> None:
    seen: list[NDArray[np.generic]] = []
    checks = verify(backend(network, seen), network, [(96, 96)], [1, 2], Tolerance())
    assert [(check.batch, check.images) for check in checks] == [(1, 3), (2, 4)]
    pictures = np.concatenate(seen)
    assert len({picture.tobytes() for picture in pictures[:3]}) == 3
    assert len({picture.tobytes() for picture in pictures[3:]}) == 4


def test_a_fault_that_only_the_last_picture_shows(network: CGRSeg) -> None:
    seen: list[NDArray[np.generic]] = []
    exact = backend(network, seen)

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        logits = exact.logits(torch.from_numpy(array)).numpy()
        return logits * (1.01 if len(seen) == 3 else 1.0)

    faulty = ExportedBackend(exact.description, run, "x.pt2")
    with pytest.raises(WeightsError, match=r"logits differ by 1\.0e-02"):
        verify(faulty, network, [(96, 96)], [1], Tolerance())
