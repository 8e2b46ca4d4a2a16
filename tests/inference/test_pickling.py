"""A Predictor in worker processes and other programs, where it arrives by pickle."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cgrseg.config.schema import TestConfig
from cgrseg.deploy import export
from cgrseg.errors import WeightsError
from cgrseg.inference import Predictor, TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.models import CGRSeg
from tests.golden_weights import set_golden_weights
from tests.inference.fixtures import description, photo

TEST = TestConfig(scale=(128, 64))


@pytest.fixture(scope="module")
def model() -> CGRSeg:
    network = CGRSeg("cgrseg_t", 3, classes=("sky", "road", "car"))
    set_golden_weights(network)
    return network.eval()


def child(predictor: Predictor, image: NDArray[np.uint8], answers: Any) -> None:
    answers.put(predictor(image).labels)


def test_a_spawned_worker_predicts_the_same(model: CGRSeg) -> None:
    predictor, image = Predictor(TorchBackend(model, channels_last=True), TEST), photo(70, 90)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    worker = context.Process(target=child, args=(predictor, image, answers))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert np.array_equal(answers.get(), predictor(image).labels)


@pytest.mark.parametrize("form", ["module", "compiled"])
def test_a_copy_is_its_own_network_with_the_same_settings(
    form: str, model: CGRSeg, tmp_path: Path
) -> None:
    backend: Any = (
        TorchBackend(model, precision="bf16")
        if form == "module"
        else CompiledBackend(model, precision="bf16", folder=tmp_path, compile_after=0)
    )
    predictor, image = Predictor(backend, TEST, palette=[(1, 2, 3)] * 3), photo(70, 90)
    expected = predictor(image).labels
    for made in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert np.array_equal(made(image).labels, expected)
        assert made.backend.precision == "bf16" and made.test == TEST
        assert made.classes == predictor.classes and made.palette == predictor.palette
    with torch.no_grad():
        model.decode_head.conv_seg.bias[0] += 100
    assert np.array_equal(made(image).labels, expected)
    with torch.no_grad():
        model.decode_head.conv_seg.bias[0] -= 100


def test_without_its_gpu_it_uses_the_cpu_and_says_so(
    model: CGRSeg, caplog: pytest.LogCaptureFixture
) -> None:
    backend = TorchBackend(model)
    state = {**backend.__getstate__(), "device": torch.device("cuda", 7)}
    arrived = TorchBackend.__new__(TorchBackend)
    arrived.__setstate__(state)
    assert arrived.device == torch.device("cpu") and "cuda:7 is not there" in caplog.text


@pytest.mark.slow
def test_an_exported_file_is_opened_again(model: CGRSeg, tmp_path: Path) -> None:
    file = tmp_path / "small.pt2"
    export(model, "pt2", file, sizes=[(64, 96)])
    predictor, image = Predictor.from_pretrained(file), photo(60, 90)
    content = pickle.dumps(predictor)
    assert len(content) < 100_000
    assert np.array_equal(pickle.loads(content)(image).labels, predictor(image).labels)
    export(model, "pt2", file, sizes=[(64, 128)], overwrite=True)
    with pytest.raises(WeightsError, match="another export"):
        pickle.loads(content)
    file.unlink()
    with pytest.raises(WeightsError, match="No such file"):
        pickle.loads(content)


def test_a_function_is_no_file() -> None:
    backend = ExportedBackend(description(), lambda array: array, "x.onnx")
    with pytest.raises(TypeError, match=r"x\.onnx: only a backend that was opened from a file"):
        pickle.dumps(backend)
