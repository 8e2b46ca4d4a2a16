"""Predictor, sources and folders of images."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cgrseg.config.schema import TestConfig
from cgrseg.data.label_files import label_note, write_label_png
from cgrseg.errors import ConfigError, DataError, EnvironmentProblem, WeightsError
from cgrseg.inference import Prediction, Predictor, TorchBackend, predict_folder, segment
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.image_sources import as_image, find_images
from cgrseg.models import CGRSeg
from tests.golden_weights import set_golden_weights
from tests.inference.fixtures import BlockBackend, photo

CLASSES = ("sky", "road", "car")
PALETTE = ((70, 130, 180), (128, 64, 128), (0, 0, 142))
SMALL = {"scale": [128, 64], "resize": "keep_ratio"}


def predictor() -> Predictor:
    return Predictor(BlockBackend(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = CGRSeg("cgrseg_t", 3, classes=CLASSES, palette=PALETTE, preprocessing=SMALL)
    set_golden_weights(model)
    model.save_pretrained(folder)
    return folder


def test_from_pretrained_takes_everything_from_the_checkpoint(checkpoint: Path) -> None:
    found = Predictor.from_pretrained(checkpoint, device="cpu")
    assert found.classes == CLASSES and found.palette == PALETTE
    assert found.test.scale == (128, 64)
    image = photo(90, 130)
    prediction = found(image)
    assert prediction.labels.shape == (90, 130) and prediction.labels.dtype == np.uint8
    expected = segment(found.backend, image, TestConfig(scale=(128, 64))).labels
    assert np.array_equal(prediction.labels, expected)
    assert len(np.unique(prediction.labels)) > 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_on_most_pixels(checkpoint: Path, precision: str) -> None:
    image = photo(90, 130)
    full = Predictor.from_pretrained(checkpoint, device="cpu")(image)
    half = Predictor.from_pretrained(checkpoint, "cpu", precision)(image)  # type: ignore[arg-type]
    assert (full.labels == half.labels).mean() > 0.9


@pytest.mark.parametrize("batch_size", [0, -1, 65_537])
def test_a_batch_size_out_of_range_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=r"^batch_size: "):
        predictor()([photo(8, 8)], batch_size=batch_size)


def test_settings_that_cannot_be_used(tmp_path: Path) -> None:
    model = CGRSeg("cgrseg_t", 3, preprocessing={"scale": [64, 32], "zoom": 2})
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="test settings that cannot be used"):
        Predictor.from_pretrained(tmp_path, device="cpu")


def test_a_device_that_is_not_there() -> None:
    from cgrseg.devices import resolve_device

    with pytest.raises(EnvironmentProblem, match="cuda:99"):
        resolve_device("cuda:99")
    with pytest.raises(EnvironmentProblem, match="choose another device"):
        resolve_device("abacus")
    with pytest.raises(ConfigError, match="fp32, bf16 or fp16"):
        TorchBackend(torch.nn.Conv2d(3, 3, 1), precision="int3")  # type: ignore[arg-type]


def test_names_by_count_are_told_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cgrseg.inference"):
        assert Predictor(BlockBackend(150)).classes[:2] == ("wall", "building")
        assert Predictor(BlockBackend(4)).classes == ("class 0", "class 1", "class 2", "class 3")
    assert "150 classes are taken for those of" in caplog.text
    assert "no class names" in caplog.text
    with pytest.raises(ConfigError, match="3, one for each output"):
        Predictor(BlockBackend(3), classes=("a", "b"), palette=PALETTE)


def test_one_image_in_every_form_gives_the_same_labels(tmp_path: Path) -> None:
    image = photo(70, 90)
    path = save(tmp_path / "one.png", image)
    expected = predictor()(image).labels
    for form in (path, str(path), Image.fromarray(image), np.dstack([image, image[:, :, :1]])):
        assert np.array_equal(predictor()(form).labels, expected)
    assert predictor()(path).source == path


def test_an_image_in_memory_is_the_same_image(tmp_path: Path) -> None:
    image = photo(70, 90)
    content = save(tmp_path / "one.png", image).read_bytes()
    written = io.BytesIO()
    Image.fromarray(image).save(written, "PNG")  # which leaves it at its end
    tensor = torch.from_numpy(image)
    forms: list[Any] = [
        content,
        bytearray(content),
        memoryview(content),
        np.frombuffer(content, np.uint8),
        np.asarray(content),
        written,
        written,  # a second time
        tensor,
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1).float() / 255,
        (tensor.double() / 255).requires_grad_(),
    ]
    for number, form in enumerate(forms):
        assert np.array_equal(as_image(form), image), number
    with (tmp_path / "one.png").open("rb") as opened:
        assert np.array_equal(predictor()(opened).labels, predictor()(image).labels)
    found = predictor()(forms)
    assert len(found) == len(forms) and found[0].source is None
    assert np.array_equal(as_image(tensor[:, :, 0]), np.repeat(image[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "no bytes"),
        (io.BytesIO(), "no bytes"),
        (b"GIF but no image", "cannot be decoded"),
        (io.StringIO("text"), "gives str"),
        (torch.zeros(2, 3, 32, 32), r"list\(batch\)"),
        (torch.zeros(3, 5, 3), "channels first or last"),
        (torch.zeros(5, 6, 7), r"expected: \(3, H, W\)"),
        (torch.randn(3, 8, 8) - 5, "not normalized"),
        (torch.full((3, 8, 8), 200.0), r"torch\.uint8"),
        (torch.full((3, 8, 8), float("nan")), "values from nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "array of int64"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_image(value)


def test_lists_folders_and_patterns(tmp_path: Path) -> None:
    images = [photo(70, 90, seed) for seed in range(3)]
    for number, image in enumerate(images):
        save(tmp_path / f"{number}.png", image)
    expected = [predictor()(image).labels for image in images]
    for several in (images, tmp_path, str(tmp_path / "*.png"), tuple(images)):
        for batch_size in (1, 2):
            found = predictor()(several, batch_size=batch_size)
            assert [p.labels.tolist() for p in found] == [e.tolist() for e in expected]


def test_a_stream_of_one_source_is_a_stream_of_its_images(tmp_path: Path) -> None:
    images = [photo(70, 90, seed) for seed in range(2)]
    files = [save(tmp_path / f"{number}.png", image) for number, image in enumerate(images)]
    expected = [predictor()(image).labels for image in images]
    content = files[0].read_bytes()
    for source, count in (
        (str(tmp_path), 2),
        (files[0], 1),
        (content, 1),
        (io.BytesIO(content), 1),
    ):
        found = [prediction for _, prediction in predictor().stream(source)]
        assert len(found) == count
        for prediction, labels in zip(found, expected, strict=False):
            assert isinstance(prediction, Prediction)
            assert np.array_equal(prediction.labels, labels)


def test_awkward_files_get_their_own_size(tmp_path: Path) -> None:
    narrow = save(tmp_path / "narrow.png", photo(501, 37))
    grey = save(tmp_path / "grey.png", photo(60, 80)[:, :, 0])
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(photo(60, 80)).save(turned, exif=exif)
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), photo(60, 80).astype(np.uint16) * 257)
    cmyk = tmp_path / "cmyk.jpg"
    Image.fromarray(photo(60, 80)).convert("CMYK").save(cmyk)
    for path, shape in (
        (narrow, (501, 37)),
        (grey, (60, 80)),
        (turned, (80, 60)),
        (deep, (60, 80)),
        (cmyk, (60, 80)),
    ):
        assert predictor()(path).labels.shape == shape, path


def test_arrays_that_are_no_images() -> None:
    for bad in (np.zeros((4, 4, 3)), np.zeros((3, 5, 7), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"uint8 values 0\.\.255"):
            as_image(bad)
    with pytest.raises(DataError, match="type int"):
        as_image(3)


def test_prediction_tells_and_shows() -> None:
    found = predictor()(photo(60, 80), confidence=True)
    assert list(found.shares) == sorted(found.shares, key=lambda name: -found.shares[name])
    assert sum(found.shares.values()) == pytest.approx(1)
    name = next(iter(found.shares))
    assert found.mask(name).mean() == pytest.approx(found.shares[name])
    with pytest.raises(KeyError, match="no class 'tree'; there are sky, road, car"):
        found.mask("tree")
    assert found.confidence is not None
    assert found.confidence.min() >= 1 / 3 and found.confidence.max() <= 1
    colours = found.colored()
    assert colours[5, 7].tolist() == list(PALETTE[found.labels[5, 7]])
    assert np.array_equal(found.overlay(1.0)[found.mask(name)].max(0), PALETTE[CLASSES.index(name)])
    legend = found.overlay(legend=True)
    assert legend.shape[1] > 80


def test_stream_goes_on_after_a_bad_file(tmp_path: Path) -> None:
    good = save(tmp_path / "a.png", photo(60, 80))
    bad = tmp_path / "b.png"
    bad.write_bytes(good.read_bytes()[:100])
    found = list(predictor().stream([good, bad, good], on_error="yield", batch_size=2))
    assert [source for source, _ in found] == [good, bad, good]
    assert isinstance(found[1][1], DataError) and "b.png" in str(found[1][1])
    with pytest.raises(DataError, match=r"b\.png"):
        list(predictor().stream([good, bad, good]))


def test_stream_reads_no_more_than_the_next_batch(tmp_path: Path) -> None:
    taken: list[int] = []

    def endless() -> object:
        number = 0
        while True:
            taken.append(number)
            yield photo(40, 40, number)
            number += 1

    stream = predictor().stream(endless())  # type: ignore[arg-type]
    next(stream)
    next(stream)
    assert len(taken) == 3
    stream.close()  # type: ignore[attr-defined]


def test_finding_images(tmp_path: Path) -> None:
    save(tmp_path / "in" / "x" / "a.png", photo(8, 8))
    save(tmp_path / "in" / "a.png", photo(8, 8))
    save(tmp_path / "in" / "a.jpg", photo(8, 8))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert [i.name for i in find_images(tmp_path / "in")] == ["a_jpg", "a_png", "x/a"]
    # The same file twice is done once.
    both: list[str | Path] = [tmp_path / "in" / "a.png", str(tmp_path / "in" / "*.png")]
    assert [i.name for i in find_images(both)] == ["a"]
    with pytest.raises(DataError, match="no such file or folder"):
        find_images(tmp_path / "missing.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        find_images(tmp_path / "empty")


def test_two_results_never_share_a_name(tmp_path: Path) -> None:
    first = save(tmp_path / "one" / "a.png", photo(8, 8))
    second = save(tmp_path / "two" / "a.png", photo(8, 8))
    with pytest.raises(DataError, match="names that differ"):
        find_images([first, second])


def test_folder_restarts_shards_and_reports(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    images = {f"{n}": photo(50, 60, n) for n in range(5)}
    for name, image in images.items():
        save(source / f"{name}.png", image)
    (source / "bad.png").write_bytes(b"not an image")
    first = predict_folder(predictor(), source, out, rank=0, world_size=2)
    second = predict_folder(predictor(), source, out, rank=1, world_size=2)
    assert len(first.done) + len(second.done) == 5
    failed = first.failed + second.failed
    assert [path.name for path, _ in failed] == ["bad.png"]
    for name, image in images.items():
        written = np.array(Image.open(out / "labels" / f"{name}.png"))
        assert np.array_equal(written, predictor()(image).labels)
        assert (out / "overlays" / f"{name}.jpg").is_file()
    # A restart does what is missing only; an unfinished image counts as missing.
    (out / "labels" / "3.png").unlink()
    before = (out / "labels" / "2.png").stat().st_mtime_ns
    again = predict_folder(predictor(), source, out)
    assert [path.stem for path in again.done] == ["3"] and len(again.kept) == 4
    assert (out / "labels" / "2.png").stat().st_mtime_ns == before
    assert len(predict_folder(predictor(), source, out, overwrite=True).done) == 5
    assert not list(out.rglob("*.partial"))


def test_long_names_are_written_and_too_long_ones_named(tmp_path: Path) -> None:
    """Names of 255 bytes are allowed; a suffix of ours may make one too long."""
    images = tmp_path / "images"
    for name in ("a.png", "b" * 234 + ".png", "ü" * 125 + ".png", "c" * 251 + ".png"):
        save(images / name, photo(20, 30))
    for suffix in ("jpg", "bmp"):  # of one stem: the results' names get the suffix added
        save(images / f"{'d' * 250}.{suffix}", photo(20, 30))
    report = predict_folder(predictor(), images, tmp_path / "out", legend=False)
    assert len(report.done) == 4
    assert [path.name[:2] for path, _ in report.failed] == ["dd", "dd"]
    assert "259 bytes" in str(report.failed[0][1]) or "258 bytes" in str(report.failed[0][1])
    assert len(list((tmp_path / "out" / "labels").glob("*.png"))) == 4
    again = predict_folder(predictor(), images, tmp_path / "out", legend=False)
    assert (len(again.kept), len(again.failed)) == (4, 2)


def test_files_that_are_no_results_are_not_replaced(tmp_path: Path) -> None:
    save(tmp_path / "data" / "images" / "a.png", photo(50, 60))
    truth = tmp_path / "data" / "labels" / "a.png"
    save(truth, photo(50, 60, 1))
    before = truth.read_bytes()
    with pytest.raises(DataError, match="not known to be results"):
        predict_folder(predictor(), tmp_path / "data" / "images", tmp_path / "data")
    assert truth.read_bytes() == before
    assert not (tmp_path / "data" / "prediction.json").exists()


def test_results_inside_the_input_folder_are_no_input(tmp_path: Path) -> None:
    save(tmp_path / "a.png", photo(50, 60))
    for _ in range(3):
        report = predict_folder(predictor(), tmp_path, tmp_path / "painted")
        assert len(report.done) + len(report.kept) == 1
    assert [p.name for p in (tmp_path / "painted" / "labels").rglob("*.png")] == ["a.png"]


def test_sixteen_bit_pictures_equal_their_files(tmp_path: Path) -> None:
    grey = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    path = tmp_path / "grey.png"
    Image.fromarray(grey).save(path)
    with Image.open(path) as opened:
        assert opened.mode.startswith("I;16")
        assert np.array_equal(as_image(opened), as_image(path))
    with pytest.raises(DataError, match="mode 'F'"):
        as_image(Image.fromarray(grey.astype(np.float32)))


@functools.lru_cache
def small_network(bias: float = 0.0) -> CGRSeg:
    network = CGRSeg("cgrseg_t", len(CLASSES))
    set_golden_weights(network)
    with torch.no_grad():
        network.get_parameter("decode_head.conv_seg.bias").add_(bias * torch.arange(len(CLASSES)))
    return network


def test_results_of_two_networks_are_not_mixed(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", photo(40, 60))
    test = TestConfig(resize="none")

    def run(network: CGRSeg, precision: Any = "fp32", flip: bool = False, **options: Any) -> Any:
        ours = Predictor(
            TorchBackend(network, "cpu", precision),
            test.model_copy(update={"flip": flip}),
            CLASSES,
            PALETTE,
        )
        return predict_folder(ours, picture, tmp_path / "out", checkpoint="best.pth", **options)

    run(small_network())
    # A path says nothing: the file behind it may be another one by now.
    with pytest.raises(DataError, match="results of other weights"):
        run(small_network(5.0))
    with pytest.raises(DataError, match="results of other precision"):
        run(small_network(), precision="bf16")
    with pytest.raises(DataError, match="results of other test"):
        run(small_network(), flip=True)
    with pytest.raises(DataError, match="results of other overlays"):
        run(small_network(), opacity=0.9)
    assert len(run(small_network()).kept) == 1
    assert len(run(small_network(), overlays=False).kept) == 1
    assert len(run(small_network(5.0), overwrite=True).done) == 1
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["checkpoint"] == "best.pth" and record["classes"] == list(CLASSES)
    assert len(run(small_network(5.0)).kept) == 1


def test_an_overwrite_that_was_stopped_leaves_no_mixture(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png", photo(40, 60, ord(name)))
    test, out = TestConfig(resize="none"), tmp_path / "out"

    def run(bias: float, **options: Any) -> Any:
        ours = Predictor(TorchBackend(small_network(bias)), test, CLASSES, PALETTE)
        return predict_folder(ours, tmp_path / "in", out, checkpoint="best.pth", **options)

    run(0.0)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(5.0, overwrite=True, progress=stop)
    again = run(5.0)
    assert [path.stem for path in again.kept] == ["a"]
    assert [path.stem for path in again.done] == ["b", "c"]
    for name in ("a", "b", "c"):
        # The last class is favoured so much that it takes every pixel.
        assert (np.array(Image.open(out / "labels" / f"{name}.png")) == len(CLASSES) - 1).all()
    # What somebody has retouched carries no note, and is kept.
    save(out / "labels" / "a.png", photo(40, 60))
    assert len(run(5.0).kept) == 3


def test_a_stopped_overwrite_replaces_foreign_maps_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [chr(code) for code in range(ord("a"), ord("z"))]
    for name in names:
        save(tmp_path / "in" / f"{name}.png", photo(40, 60, ord(name)))
        save(out / "labels" / f"{name}.png", photo(40, 60))  # by somebody else

    def run(**options: Any) -> Any:
        return predict_folder(predictor(), tmp_path / "in", out, overlays=False, **options)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(overwrite=True, progress=stop)
    assert "overwriting" in json.loads((out / "prediction.json").read_text())
    again = run()
    assert [path.stem for path in again.kept + again.done] == names
    assert again.kept and again.done
    assert "overwriting" not in json.loads((out / "prediction.json").read_text())


def test_a_map_of_another_photo_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    for day, seed in (("monday", 1), ("tuesday", 2)):
        save(tmp_path / day / "1.png", photo(40, 60, seed))
    out = tmp_path / "out"
    predict_folder(predictor(), tmp_path / "monday", out)
    written = out / "labels" / "1.png"
    before, of_monday = written.read_bytes(), str(label_note(written)).split()
    save(tmp_path / "tuesday" / "0.png", photo(40, 60))
    with pytest.raises(DataError, match=r"(?s)labels/1\.png.*another image than .*tuesday/1\.png"):
        predict_folder(predictor(), tmp_path / "tuesday", out)
    assert written.read_bytes() == before and not (out / "labels" / "0.png").exists()
    assert len(predict_folder(predictor(), tmp_path / "monday", out).kept) == 1
    assert len(predict_folder(predictor(), tmp_path / "tuesday", out, overwrite=True).done) == 2
    # A note of an earlier version says nothing of the image: the map is made again.
    labels = np.array(Image.open(written))
    write_label_png(written, labels, PALETTE, note=" ".join(of_monday[:2]))
    again = predict_folder(predictor(), tmp_path / "tuesday", out)
    assert (len(again.kept), len(again.done)) == (1, 1)
    # One of another place says so as before.
    write_label_png(written, labels, PALETTE, note=" ".join(of_monday[:3]))
    with pytest.raises(DataError, match="another image than"):
        predict_folder(predictor(), tmp_path / "tuesday", out)


@pytest.mark.parametrize("age", [-3600, 3600])
def test_an_image_that_was_replaced_is_predicted_again(tmp_path: Path, age: int) -> None:
    image = save(tmp_path / "in" / "1.png", photo(40, 60, 1))
    out = tmp_path / "out"
    predict_folder(predictor(), tmp_path / "in", out)
    assert len(predict_folder(predictor(), tmp_path / "in", out).kept) == 1
    os.utime(image)  # the same bytes
    assert len(predict_folder(predictor(), tmp_path / "in", out).kept) == 1
    save(image, photo(40, 60, 2))
    os.utime(image, (time.time() + age,) * 2)
    assert len(predict_folder(predictor(), tmp_path / "in", out).done) == 1
    fresh = tmp_path / "fresh"
    predict_folder(predictor(), tmp_path / "in", fresh)
    made = (out / "labels" / "1.png").read_bytes()
    assert made == (fresh / "labels" / "1.png").read_bytes()


def test_an_image_that_can_no_longer_be_read_is_reported(tmp_path: Path) -> None:
    image = save(tmp_path / "in" / "1.png", photo(40, 60, 1))
    predict_folder(predictor(), tmp_path / "in", tmp_path / "out")
    image.write_bytes(b"")
    again = predict_folder(predictor(), tmp_path / "in", tmp_path / "out")
    assert again.kept == [] and [path for path, _ in again.failed] == [image]


def test_the_digest_is_of_the_bytes_that_were_decoded(tmp_path: Path) -> None:
    image = save(tmp_path / "in" / "1.png", photo(40, 60, 1))
    other = save(tmp_path / "other.png", photo(40, 60, 2)).read_bytes()
    out = tmp_path / "out"

    class Replacing(BlockBackend):
        """Replaces the image while the network is at work on it."""

        def logits(self, batch: torch.Tensor) -> torch.Tensor:
            image.write_bytes(other)
            return super().logits(batch)

    ours = Predictor(Replacing(3), TestConfig(scale=(128, 64)), CLASSES, PALETTE)
    predict_folder(ours, tmp_path / "in", out, overlays=False)
    before = np.array(Image.open(out / "labels" / "1.png"))
    assert len(predict_folder(predictor(), tmp_path / "in", out, overlays=False).done) == 1
    assert (np.array(Image.open(out / "labels" / "1.png")) != before).any()


def test_a_video_among_photos_is_refused(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.png", photo(8, 8)), tmp_path / "clip.mp4"]
    files[1].write_bytes(b"")
    with pytest.raises(DataError, match="predict_video"):
        predict_folder(predictor(), files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_compiled_and_plain_results_are_told_apart(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", photo(40, 60))
    network, test = small_network(), TestConfig(resize="none")
    plain = Predictor(TorchBackend(network, "cpu"), test, CLASSES, PALETTE)
    compiled = Predictor(CompiledBackend(network, "cpu"), test, CLASSES, PALETTE)
    predict_folder(plain, picture, tmp_path / "out")
    # The weights are the same: only how they are computed differs.
    with pytest.raises(DataError, match=r"results of other compile \("):
        predict_folder(compiled, picture, tmp_path / "out")


def test_a_failed_image_in_a_stream_is_named_and_the_others_are_done() -> None:
    class Nervous(BlockBackend):
        def logits(self, batch: torch.Tensor) -> torch.Tensor:
            dark = batch.amax(dim=(1, 2, 3)) < 0
            return super().logits(batch) / (~dark)[:, None, None, None]

    ours = Predictor(Nervous(len(CLASSES)), TestConfig(resize="none"), CLASSES, PALETTE)
    images = [photo(64, 64), np.zeros((64, 64, 3), np.uint8), photo(64, 64, 1)]
    found = [one for _, one in ours.stream(images, batch_size=3, on_error="yield")]
    assert isinstance(found[1], DataError) and "NaN or infinite" in str(found[1])
    assert [type(one) for one in (found[0], found[2])] == [Prediction, Prediction]
    with pytest.raises(DataError, match=r"an image in memory: .* NaN or infinite"):
        list(ours.stream(images, batch_size=3))


def test_more_classes_than_an_indexed_png_holds_are_refused(tmp_path: Path) -> None:
    names = [f"c{k}" for k in range(300)]
    ours = Predictor(BlockBackend(300), TestConfig(resize="none"), names, [PALETTE[0]] * 300)
    found = ours(photo(64, 64))
    assert found.labels.max() > 255
    with pytest.raises(DataError, match="labels of 300 classes"):
        found.save_labels(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("names", [("a", "b", "a"), ("a", "", "c"), ("a", "b\n", "c\nd")])
def test_names_that_would_move_ids_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="classes: the class name"):
        Predictor(BlockBackend(3), TestConfig(), names)
