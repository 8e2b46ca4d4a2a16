"""Export formats are found by their file names: adding one is adding a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrseg import formats
from cgrseg.bench.random_weights import draw_weights
from cgrseg.deploy import export
from cgrseg.errors import ConfigError, WeightsError
from cgrseg.formats.description import Description, append_description, read_appended
from cgrseg.formats.names import format_names
from cgrseg.inference import Predictor
from cgrseg.models import create_model
from tests.inference.fixtures import photo

MADE_UP = '''"""Weights as NumPy arrays."""

import json

import numpy as np
import torch

from cgrseg.formats.base import ExportFormat
from cgrseg.formats.description import Description
from cgrseg.models import CGRSeg


class ArraysFormat(ExportFormat):
    suffix = ".npz"

    def write(self, job, path):
        arrays = {name: value.numpy() for name, value in job.model.state_dict().items()}
        texts = (job.description.model_dump_json(), json.dumps(job.model.options()))
        np.savez(path, texts=np.array(texts), **arrays)

    def open(self, path, precision="fp32"):
        with np.load(path) as stored:
            description, options = (str(text) for text in stored["texts"])
            model = CGRSeg(**json.loads(options)).eval()
            names = [name for name in stored.files if name != "texts"]
            model.load_state_dict({name: torch.from_numpy(stored[name]) for name in names})

        def run(array):
            with torch.inference_mode():
                return model(torch.from_numpy(array)).numpy()

        return Description.read(description, path), run


FORMAT = ArraysFormat()
'''


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "arrays_format.py").write_text(MADE_UP)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    format_names.cache_clear()
    yield "arrays"
    format_names.cache_clear()


def test_names_and_help_texts() -> None:
    assert format_names() == (
        *("aoti", "coreml", "executorch", "litert", "ncnn", "onnx", "openvino", "pt2", "web"),
    )
    assert formats.format_summaries()["pt2"] == "portable PyTorch program"
    assert [formats.load_format(name).name for name in format_names()] == [*format_names()]


def test_unknown_names_and_suffixes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mnn'\s+expected: aoti, coreml, executorch, litert"):
        formats.load_format("mnn")
    assert formats.is_exported("A.ONNX") and not formats.is_exported("a.pth")
    file = tmp_path / "a.pth"
    file.touch()
    with pytest.raises(WeightsError, match=r"a\.pth: a file name that ends in '\.pth'"):
        formats.describe(file)


@given(model=st.binary(max_size=300), place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_an_appended_description_shows_damage(model: bytes, place: int, change: int) -> None:
    """Whatever the model holds, also the marks of a ZIP archive, and wherever a byte changes."""
    about = Description(
        kind="litert", variant="cgrseg_t", num_classes=2, classes=["a", "b"], palette=None,
        mean=(0, 0, 0), std=(1, 1, 1), test=None, sizes=[(64, 96)], batch=1, takes="normalised",
        gives="logits", precision="fp32", source="best.pth", source_digest="1", version="1",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tflite")
        path.write_bytes(model)
        append_description(path, about)
        found, content = read_appended(path, "a model")
        assert content == model
        assert found.model_copy(update={"file_digest": ""}) == about
        whole = bytearray(path.read_bytes())
        whole[place % len(whole)] ^= change
        path.write_bytes(whole)
        try:
            read_appended(path, "a model")
        except WeightsError:
            return
        # Only fields of the archive that say nothing about its content, such as the date.
        assert place % len(whole) >= len(model)


def test_a_format_is_one_file(made_up: str, tmp_path: Path) -> None:
    """It is written, compared with the network, described and predicted with."""
    assert made_up in format_names()
    assert formats.format_summaries()[made_up] == "weights as NumPy arrays"
    model = draw_weights(create_model("cgrseg_t", 5, context_blocks=1))
    result = export(model, made_up, tmp_path / "small.npz", sizes=[(64, 96)], batch=1)
    assert [check.labels for check in result.checks] == [1.0]
    assert formats.describe(result.path).kind == made_up
    labels = Predictor.from_pretrained(result.path)(photo(64, 96)).labels
    assert labels.shape == (64, 96) and len(np.unique(labels)) > 1
