"""The fastest form that is ready: what `--compile auto` takes, and what it says about it."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cgrseg.errors import ConfigError
from cgrseg.formats import openvino_format
from cgrseg.inference import Predictor, compiled_cache, ready_backend
from cgrseg.inference.backends import TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.compiled_cache import missing_compiler
from cgrseg.inference.ready_backend import ReadyBackend, make_backend
from cgrseg.models import CGRSeg, create_model
from tests.golden_weights import golden_input, set_golden_weights
from tests.small_variant import small_variant


@pytest.fixture(scope="module")
def model() -> Iterator[CGRSeg]:
    with small_variant() as name:
        built = create_model(name, num_classes=5).eval()
        set_golden_weights(built)
        yield built


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *package: None if name == "openvino" else find(name, *package),
    )


def image(images: int = 1, height: int = 64, width: int = 64) -> torch.Tensor:
    return golden_input(f"input_{images}x{height}x{width}", (images, 3, height, width))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason="there is no C++ compiler here"
)
def test_a_compiled_network_of_an_earlier_run_is_taken(model: CGRSeg, tmp_path: Path) -> None:
    """A real compilation, about half a minute."""
    assert CompiledBackend(model, folder=tmp_path).prepare(64, 64).how == "compiled"
    backend = ReadyBackend(model, folder=tmp_path)
    with torch.inference_mode():
        assert relative(backend.logits(image()), model(image())) < 1e-5
        assert relative(backend.logits(image(3)), model(image(3))) < 1e-5
        assert backend.choice == "compiled network of an earlier run (4 images)"
        assert backend.advice == ""
        assert relative(backend.logits(image(width=96)), model(image(width=96))) < 1e-5
    assert "(4 images), folded network (1 images)" in backend.choice
    other = create_model("cgrseg_t", num_classes=5).eval()
    stranger = ReadyBackend(other, folder=tmp_path)
    stranger.logits(image())
    assert stranger.choice.startswith("folded network (1 images): no compiled network was ready")


def test_each_size_is_looked_up_once(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def find(target: Path) -> Path | None:
        asked.append(target.name.split("-")[2])
        return target if "1x3x64x64" in target.name else None

    monkeypatch.setattr(compiled_cache, "find", find)
    backend = ReadyBackend(model, folder=tmp_path)
    monkeypatch.setattr(compiled_cache, "load", lambda path: backend._network)
    for width in (64, 64, 96, 96, 64):
        backend.logits(image(width=width))
    assert asked == ["1x3x64x64", "1x3x64x96"]
    assert dict(backend.used) == {"compiled": 3, "folded": 2}
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_told_and_the_folded_network_runs(
    model: CGRSeg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ReadyBackend(model, folder=tmp_path / "cache")
    path = backend._path((1, 64, 64))
    compiled_cache.prepare_folder(path.parent)
    kept = path.with_name(f"{path.stem}-{'0' * 32}.pt2")
    kept.write_bytes(b"not a package")
    kept.chmod(0o600)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        assert relative(backend.logits(image()), model(image())) < 1e-5
    assert "its content has changed" in caplog.text and not kept.exists()
    # A folder that others may write is refused, once.
    kept.write_bytes(b"not a package")
    kept.chmod(0o622)
    caplog.clear()
    again = ReadyBackend(model, folder=tmp_path / "cache")
    for _ in range(2):
        again.logits(image())
    assert caplog.text.count("the compiled network in the cache is not used") == 1


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
def test_many_images_of_a_size_are_worth_a_conversion_to_openvino(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_backend, "_PIXELS_TO_CONVERT", 90 * 64 * 64)
    backend = ReadyBackend(model, folder=tmp_path)
    backend._threads = 1
    backend.expect(50)
    for _ in range(5):
        backend.logits(image())
    assert dict(backend.used) == {"folded": 5}  # 45 images are to come, of 90
    assert "too few images" in backend.choice and "--compile" in backend.advice
    backend.expect(100)
    with torch.inference_mode():
        assert relative(backend.logits(image()), model(image())) < 1e-5
        assert dict(backend.used) == {"folded": 5, "openvino": 1}
        assert relative(backend.logits(image(6)), model(image(6))) < 1e-5
    assert "OpenVINO, whose conversion pays for many images (7 images)" in backend.choice
    assert backend.advice == ""
    assert not list(tmp_path.iterdir())
    # Another size runs folded.
    backend.logits(image(width=96))
    assert backend.used["folded"] == 6
    travelled = pickle.loads(pickle.dumps(backend))
    assert relative(travelled.logits(image()), backend.logits(image())) < 1e-5


def test_large_inputs_run_as_published_within_bounded_memory(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_backend, "_MOST_FOLDED_PIXELS", 2 * 64 * 64)
    backend = ReadyBackend(model, folder=tmp_path)
    backend.expect(10**9)
    with torch.inference_mode():
        for _ in range(5):
            found = backend.logits(image(height=128, width=96))
        assert torch.equal(found, model(image(height=128, width=96)))
        backend.expect(0)  # so that no conversion pays
        backend.logits(image(2))
        backend.logits(image(3))
    assert dict(backend.used) == {"published": 8, "folded": 2}
    assert "network as published, for large inputs (8 images)" in backend.choice


def test_other_threads_use_the_network_while_it_is_converted(model: CGRSeg, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    backend = ReadyBackend(model, folder=tmp_path)
    network, converted = backend._network, threading.Event()

    def predict() -> list[torch.Tensor]:
        found = []
        with torch.inference_mode():
            while not converted.wait(0.02):  # most of the processor is left to the conversion
                found.append(network(image()))
        return found

    with torch.inference_mode():
        expected = network(image())
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(predict) for _ in range(2)]
        runner = backend._converted((1, 64, 96))
        converted.set()
        results = [each for future in running for each in future.result()]
    assert runner is not None, backend.choice
    assert len(results) > 10 and max(relative(each, expected) for each in results) < 1e-5


@pytest.mark.usefixtures("without_openvino")
def test_without_openvino_the_folded_network_goes_on(
    model: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ReadyBackend(model, folder=tmp_path)
    backend.expect(10**9)
    for _ in range(5):
        backend.logits(image())
    assert backend.choice == (
        "folded network (5 images): no compiled network was ready, OpenVINO is not installed"
    )
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "install g++" in backend.advice


def test_reduced_precision_is_not_converted(model: CGRSeg, tmp_path: Path) -> None:
    backend = ReadyBackend(model, precision="bf16", folder=tmp_path)
    backend.expect(10**9)
    for _ in range(5):
        backend.logits(image())
    assert "OpenVINO is for fp32, not bf16" in backend.choice


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")
@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_conversion_that_fails_is_told_once(
    model: CGRSeg,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    def convert(program: Any, threads: int) -> Any:
        if fault == "raises":
            raise RuntimeError("no such operation\nmore")
        return lambda array: torch.zeros(1, 5, 8, 8).numpy()

    monkeypatch.setattr(openvino_format, "run_in_memory", convert)
    backend = ReadyBackend(model, folder=tmp_path)
    backend.expect(10**9)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for _ in range(6):
            assert relative(backend.logits(image()), model(image())) < 1e-5
    reason = "no such operation" if fault == "raises" else "its logits differ by 1.0e+00"
    assert caplog.text.count(f"OpenVINO does not run it ({reason})") == 1
    assert dict(backend.used) == {"folded": 6}


def test_the_choice_of_python(model: CGRSeg, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)

    def backend(**given: Any) -> object:
        return Predictor.from_pretrained(tmp_path, "cpu", **given).backend

    assert type(backend()) is TorchBackend  # results as published, byte for byte
    assert type(backend(compile=False)) is TorchBackend
    assert type(backend(compile=True)) is CompiledBackend
    assert type(backend(compile="auto")) is ReadyBackend
    with pytest.raises(ConfigError, match="compile: 'on'"):
        backend(compile="on")


def test_on_other_devices_auto_is_the_network_as_published(
    model: CGRSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_backend, "resolve_device", lambda device: torch.device("meta"))
    made: list[str] = []
    monkeypatch.setattr(ready_backend, "TorchBackend", lambda *given: made.append("published"))
    make_backend(model, "meta", compile="auto")
    assert made == ["published"]
