"""transformers opens a folder of `save_pretrained`, and gives the labels of Predictor."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import cgrseg
from cgrseg.config.schema import TestConfig
from cgrseg.errors import DataError
from cgrseg.models import CGRSeg
from cgrseg.training.losses import SegmentationLoss
from tests.golden_weights import set_golden_weights

BESIDE = Path(sys.prefix) / "transformers"  # where the Makefile installs it, unseen by other tests
CLASSES = ["road", "sky", "tree", "car", "sign"]
SIZES = [(64, 64), (75, 101), (130, 64)]


@pytest.fixture(scope="module")
def transformers() -> Iterator[Any]:
    """The library itself: from the environment, or from the folder beside it."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("transformers") is None and BESIDE.is_dir():
            patch.syspath_prepend(BESIDE)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers", reason='needs pip install "cgrseg[hf]"')


@pytest.fixture(scope="module")
def network() -> CGRSeg:
    """A network whose labels vary, with small test settings."""
    settings = TestConfig(scale=(128, 64)).model_dump(mode="json")
    palette = [(40 * k, 0, 0) for k in range(5)]
    model = cgrseg.create_model(
        "cgrseg_t", 5, classes=CLASSES, palette=palette, preprocessing=settings
    )
    set_golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def folder(network: CGRSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretrained")
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(7)
    return [
        np.kron(rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)), np.ones((8, 8, 1)))[:h, :w]
        .astype(np.uint8)
        for h, w in SIZES
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(folder: Path, images: list[NDArray[np.uint8]]) -> list[NDArray[np.integer]]:
    predictor = cgrseg.Predictor.from_pretrained(folder, device="cpu")
    labels = [predictor(image).labels for image in images]
    assert all(len(np.unique(each)) > 1 for each in labels)  # else equal labels would say little
    return labels


def test_pipeline_gives_the_labels_of_predictor(
    transformers: Any, folder: Path, images: Any, expected: Any, tmp_path: Path
) -> None:
    segment = transformers.pipeline("image-segmentation", model=str(folder), device="cpu")
    path = tmp_path / "image.png"
    for image, labels in zip(images, expected, strict=True):
        Image.fromarray(image).save(path)
        for source in (Image.fromarray(image), str(path)):
            found = np.full(labels.shape, -1)
            for part in segment(source):
                found[np.asarray(part["mask"]) > 0] = CLASSES.index(part["label"])
            np.testing.assert_array_equal(found, labels)


def test_auto_classes_give_the_labels_of_predictor(
    transformers: Any, folder: Path, images: Any, expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.config.id2label == dict(enumerate(CLASSES))
    with torch.no_grad():
        for image, labels in zip(images, expected, strict=True):
            inputs = processor(images=image, return_tensors="pt")
            outputs = model(**inputs)
            height, width = inputs["pixel_values"].shape[2:]
            assert outputs.logits.shape == (1, 5, height // 8, width // 8)
            sizes = [image.shape[:2]]
            [found] = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            np.testing.assert_array_equal(found.numpy(), labels)
        batch = processor([images[0], images[0][:, ::-1]], return_tensors="pt")
        outputs = model(**batch)
        found = processor.post_process_semantic_segmentation(outputs, [(64, 64)] * 2)
        assert len(found) == 2
        assert processor.post_process_semantic_segmentation(outputs)[1].shape == (8, 8)
    assert not [each for each in caplog.records if each.levelname == "ERROR"]
    with pytest.raises(DataError, match="2 images"):
        processor.post_process_semantic_segmentation(outputs, [(64, 64)])
    with pytest.raises(DataError, match="64x64 and 64x96"):
        processor(images[:2], return_tensors="pt")


def test_loss_is_the_published_one(transformers: Any, folder: Path, network: CGRSeg) -> None:
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64 * 64).reshape(1, 64, 64) % 6
    labels[labels == 5] = 255
    config = cgrseg.load_config("cgrseg-t_synthetic")
    wanted = SegmentationLoss(config.loss, 5)(network(pixels), labels)["loss"]
    torch.testing.assert_close(model(pixels, labels=labels).loss, wanted, rtol=0, atol=0)


def test_transformers_saves_what_predictor_reads(
    transformers: Any, folder: Path, images: Any, expected: Any, tmp_path: Path
) -> None:
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    predictor = cgrseg.Predictor.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_array_equal(predictor(images[1]).labels, expected[1])
    assert list(predictor.classes) == CLASSES


def test_another_number_of_labels_starts_a_new_classifier(transformers: Any, folder: Path) -> None:
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    weight = model.decode_head.conv_seg.weight
    assert weight.shape[0] == 3
    assert 0.008 < weight.std() < 0.012
    assert not model.decode_head.conv_seg.bias.any()


def test_another_number_of_labels_draws_the_positions_of_the_classes(
    transformers: Any, tmp_path: Path
) -> None:
    cgrseg.create_model("cgrseg_t", 5, context_blocks=1, head="ssa").save_pretrained(tmp_path)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    positions = model.decode_head.center_pos.weight
    assert positions.shape == (3, 128)
    assert 0.85 < positions.std() < 1.15
    assert 0.008 < model.decode_head.conv_seg.weight.std() < 0.012


def test_settings_of_several_views_are_refused(transformers: Any) -> None:
    from cgrseg.huggingface.classes import CGRSegImageProcessor

    with pytest.raises(DataError, match="one plain view"):
        CGRSegImageProcessor(TestConfig(mode="slide").model_dump(mode="json"))


def test_cgrseg_registers_its_config_after_transformers_was_imported(
    transformers: Any, repository: Path
) -> None:
    code = (
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING as known; "
        "import sys, cgrseg; "
        "assert 'cgrseg' in known, list(known); assert 'cgrseg.models' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(BESIDE)])},
    )
