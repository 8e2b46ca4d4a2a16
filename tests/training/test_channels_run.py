"""A training on five bands of 16 bits, and everything that uses its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cgrseg import Predictor, evaluate, load_model
from cgrseg.bench.random_weights import draw_weights
from cgrseg.config.schema import ChannelsConfig, Config
from cgrseg.data import dataset as dataset_module
from cgrseg.data.geometry import resize_image, resize_label
from cgrseg.data.image_files import read_image, write_image
from cgrseg.data.label_files import read_label
from cgrseg.deploy.export import export
from cgrseg.errors import ConfigError, DataError, WeightsError
from cgrseg.inference.backends import TorchBackend
from cgrseg.models import create_model, load_weights
from cgrseg.training.runner import train
from tests.small_variant import small_variant
from tests.training.small_run import differing, small_config, write_dataset

NAMES = ["green", "heat", "red", "blue", "depth"]


def to_bands(root: Path) -> Path:
    """Replace the PNG images by arrays: color in shuffled and scaled bands, and two more."""
    draws = np.random.default_rng(1)
    for path in sorted((root / "images").rglob("*.png")):
        blue, green, red = cv2.split(cv2.imread(str(path)).astype(np.uint16))
        more = draws.integers(0, 9000, (2, *red.shape)).astype(np.uint16)
        bands = [green * 200, more[0], red * 100 + 7, blue * 256, more[1]]
        np.save(path.with_suffix(".npy"), np.stack(bands, axis=2))
        path.unlink()
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_bands(write_dataset(tmp_path_factory.mktemp("bands")))


def config_of(dataset: Path, work_dir: Path, **changes: Any) -> Config:
    return small_config(dataset, work_dir, data__channels={"names": NAMES}, **changes)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "whole"
    changes = {"schedule__max_iters": 3, "train__evaluate": True, "train__eval_interval": 3}
    train(config_of(dataset, work_dir, **changes), device="cpu")
    return work_dir


def test_mean_and_deviation_are_measured_once_and_kept(dataset: Path, run: Path) -> None:
    kept = json.loads((run / "config.json").read_text())["data"]["channels"]
    images = [np.load(path) for path in sorted((dataset / "images" / "train").iterdir())]
    values = np.stack(images).astype(float)
    assert kept["mean"] == pytest.approx(values.mean(axis=(0, 1, 2)), rel=1e-9)
    assert kept["std"] == pytest.approx(values.std(axis=(0, 1, 2)), rel=1e-9)
    assert kept["types"] == ["uint16"] * 5
    model = load_model(run / "best.pth", verbose=False)
    assert model.in_channels == 5 and model.preprocessing is not None
    assert model.preprocessing["channels"]["mean"] == kept["mean"]


def refuse_to_measure(images: Any, channels: ChannelsConfig) -> ChannelsConfig:
    """Images may have been added since the run began."""
    assert channels.mean is not None and channels.std is not None and channels.types is not None
    return channels


def test_a_stopped_and_resumed_run_equals_a_whole_one(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measurements come from the checkpoint, whatever images and labels have become."""
    for folder, stops in (("one", [2]), ("two", [1, 2])):
        for last in stops:
            changes = {"schedule__max_iters": last, "loss__class_weights": "auto"}
            config = config_of(dataset, tmp_path / folder, **changes)
            config.schedule.power = 0.0  # the decay would depend on the last iteration
            train(config, device="cpu", auto_resume=True)
            if last == 1:
                monkeypatch.setattr(dataset_module, "measured_channels", refuse_to_measure)
                monkeypatch.setattr(dataset_module, "balanced_weights", None)
    assert differing(tmp_path / "one" / "latest.pth", tmp_path / "two" / "latest.pth") == []
    kept = json.loads((tmp_path / "one" / "config.json").read_text())["loss"]["class_weights"]
    assert len(kept) == 3 and min(kept) < 1 < max(kept)


def test_evaluation_and_prediction_read_the_channels_of_the_checkpoint(
    dataset: Path, run: Path, tmp_path: Path
) -> None:
    """The config of an evaluation need not name them; another order is refused."""
    plain = small_config(dataset, tmp_path / "e")
    with pytest.raises(DataError, match="no images"):
        evaluate(plain, run / "best.pth", device="cpu", progress=False)
    config = config_of(dataset, tmp_path / "e")
    result = evaluate(
        config, run / "best.pth", device="cpu", progress=False, show_dir=tmp_path / "s"
    )
    stored = json.loads((run / "config.json").read_text())["data"]["channels"]
    assert result.settings["test"]["channels"] == stored
    assert cv2.imread(str(next((tmp_path / "s").rglob("*.jpg")))).std() > 10
    predictor = Predictor.from_pretrained(run / "best.pth", device="cpu")
    images = sorted((dataset / "images" / "val").iterdir())
    hit = total = 0
    for path, found in zip(images, predictor(dataset / "images" / "val"), strict=True):
        truth = cv2.imread(str(dataset / "annotations" / "val" / f"{path.stem}.png"), 0)
        hit += int((found.labels == truth)[truth != 255].sum())
        total += int((truth != 255).sum())
        assert found.image.shape == (64, 64, 3) and found.image.dtype == np.uint8
        assert np.array_equal(predictor(np.load(path)).labels, found.labels)
    fast = Predictor.from_pretrained(run / "best.pth", device="cpu", compile="auto")
    assert (fast(images[0]).labels == predictor(images[0]).labels).mean() > 0.999
    assert result.scores.pixel_accuracy == pytest.approx(hit / total)
    swapped = config_of(dataset, tmp_path / "e")
    swapped.data.channels.names = NAMES[::-1]
    with pytest.raises(ConfigError, match=r"data\.channels\.names"):
        evaluate(swapped, run / "best.pth", device="cpu", progress=False)


def test_other_channels_are_refused_in_words(dataset: Path, run: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(run / "best.pth", device="cpu")
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 4), np.uint16))
    with pytest.raises(DataError, match=r"4 channels of uint16\n  expected: 5: green, heat"):
        predictor(tmp_path / "a.npy")
    with pytest.raises(WeightsError, match="for images of 5 channels"):
        load_weights(create_model("cgrseg_t", 3, context_blocks=1), run / "best.pth", verbose=False)
    with pytest.raises(ConfigError, match=r"images of 3 channels \(8-bit RGB\)"):
        Predictor(TorchBackend(create_model("cgrseg_t", 3, context_blocks=1, in_channels=4)))


@pytest.mark.slow
def test_exported_networks_agree(run: Path, dataset: Path, tmp_path: Path) -> None:
    """The export itself compares logits; here whole predictions of files."""
    test = Predictor.from_pretrained(run / "best.pth").test
    with small_variant() as name:
        kept = test.model_dump(mode="json")
        model = draw_weights(create_model(name, 3, in_channels=5, preprocessing=kept)).eval()
        for kind, target in (("onnx", "m.onnx"), ("openvino", "m.xml")):
            export(model, kind, tmp_path / target, sizes=[(64, 64)])
        with pytest.raises(ConfigError, match="pixels, for a network that takes green"):
            export(model, "onnx", tmp_path / "p.onnx", takes="pixels")
    assert not list(tmp_path.glob("p*"))
    reference = Predictor(TorchBackend(model), test)
    exported = [Predictor.from_pretrained(tmp_path / target) for target in ("m.onnx", "m.xml")]
    assert all(one.test == test for one in exported)
    for path in (dataset / "images" / "val").iterdir():
        wanted = reference(path).labels
        assert len(np.unique(wanted)) > 1
        for one in exported:
            assert (one(path).labels == wanted).mean() > 0.999


@pytest.mark.slow
def test_a_class_that_only_the_fifth_band_shows(shared_data: Path, tmp_path: Path) -> None:
    """Real images in shuffled and scaled bands of 16 bits; in RGB they miss the class."""
    draws = np.random.default_rng(0)
    source = shared_data / "camvid"
    for split, count in (("train", 48), ("val", 12)):
        for part in ("bands", "images", "annotations"):
            (tmp_path / part / split).mkdir(parents=True)
        files = sorted((source / "images" / split).glob("*.jpg"))
        for path in files[:: len(files) // count][:count]:
            color = resize_image(read_image(path), (120, 160))
            labels = read_label(source / "annotations" / split / f"{path.stem}.png")
            labels = resize_label(labels, (120, 160))
            ids = np.where(labels == 3, 1, 0).astype(np.uint8)  # the road, and all else
            blobs = np.zeros_like(ids)
            for _ in range(3):
                middle = (int(draws.integers(160)), int(draws.integers(120)))
                cv2.ellipse(blobs, middle, (22, 17), 0, 0, 360, 1, -1)
            ids[blobs == 1] = 2
            noise = draws.normal(20_000, 1_000, ids.shape)
            red, green, blue = (color[..., k].astype(np.float64) for k in range(3))
            bands = [blue * 170 + 900, red * 200, green * 120, red * 90, noise + 9_000.0 * blobs]
            stem = f"{split}/{path.stem}"
            np.save(tmp_path / "bands" / f"{stem}.npy", np.stack(bands, axis=2).astype(np.uint16))
            write_image(tmp_path / "images" / f"{stem}.png", color)
            cv2.imwrite(str(tmp_path / "annotations" / f"{stem}.png"), ids)
    (tmp_path / "classes.txt").write_text("other\nroad\nhidden\n")
    found = {}
    names = ["blue", "red", "green", "more", "heat"]
    for images, channels in (("bands", {"names": names}), ("images", {})):
        config = small_config(
            tmp_path,
            tmp_path / f"run {images}",
            data__images=images,
            data__channels=channels,
            augment__scale=[160, 120],
            augment__crop_size=[96, 96],
            schedule__max_iters=100,
            schedule__warmup_iters=10,
            train__batch_size=8,
            train__eval_interval=100,
            train__evaluate=True,
            train__ema_decay=0.95,
            loss__initial_weight=0.4,
        )
        result = train(config, device="cpu")
        assert result.scores is not None
        found[images] = result.scores.per_class()["IoU"]
    assert found["bands"][2] > 0.5 > 0.2 > found["images"][2], found
