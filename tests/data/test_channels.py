"""Images of other channels than 8-bit RGB: reading, refusing, measuring, normalizing, varying."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from cgrseg.config import Config
from cgrseg.config.schema import (
    AugmentConfig,
    ChannelsConfig,
    ChannelTestConfig,
    PhotometricConfig,
    TestConfig,
)
from cgrseg.config.settings import parse_overrides
from cgrseg.data.browse import write_sheet
from cgrseg.data.channels import (
    as_picture,
    decode_pixels,
    measured_channels,
    pixels_digest,
    read_pixels,
    read_pixels_with_digest,
)
from cgrseg.data.check import check_dataset
from cgrseg.data.color import MEAN, STD, distort_channels, distort_colors, normalize
from cgrseg.data.train_transform import TrainTransform, flip, rotate
from cgrseg.errors import ConfigError, DataError
from cgrseg.inference.image_sources import as_image, find_images
from cgrseg.models import create_model
from cgrseg.models.weights import load_weights, save_safetensors
from tests.small_variant import small_variant

rasterio = pytest.importorskip("rasterio", reason="needs the extra [geo]")

FIVE = ["blue", "nir", "red", "green", "heat"]


def of(names: list[str], **options: Any) -> ChannelTestConfig:
    return ChannelTestConfig(channels=ChannelsConfig(names=names, **options))


def write_tiff(path: Path, image: NDArray[Any], **profile: Any) -> Path:
    height, width, count = image.shape
    shape = {"height": height, "width": width, "count": count, "dtype": image.dtype}
    profile.setdefault("transform", rasterio.transform.from_origin(0, 0, 1, 2))
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as target:
        target.write(image.transpose(2, 0, 1))
    return path


def write_pages(path: Path, pages: list[NDArray[Any]]) -> Path:
    done, content = cv2.imencodemulti(".tiff", pages)
    assert done
    path.write_bytes(content.tobytes())
    return path


def pixels(count: int, kind: type = np.uint16, size: tuple[int, int] = (9, 14)) -> NDArray[Any]:
    draws = np.random.default_rng(count)
    return (draws.random((*size, count)) * (250 if kind is np.uint8 else 60_000)).astype(kind)


# ---- Reading ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    image=st.sampled_from([np.uint8, np.uint16, np.float32]).flatmap(
        lambda kind: arrays(
            kind,
            st.tuples(st.integers(6, 12), st.integers(7, 13), st.integers(1, 5)),
            elements=st.integers(0, 255),
        )
    ),
    form=st.sampled_from(["tiff", "deflate", "last", "first"]),
)
def test_stored_values_come_back_as_they_are(
    image: NDArray[Any], form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In uint8, uint16 and float32, from bands and from arrays in both layouts."""
    path = tmp_path_factory.mktemp("round") / ("a.npy" if form in ("last", "first") else "a.tif")
    if form == "last":
        np.save(path, image)
    elif form == "first":
        np.save(path, image.transpose(2, 0, 1))
    else:
        write_tiff(path, image, **({"compress": form} if form == "deflate" else {}))
    test = of([f"band {k}" for k in range(image.shape[2])])
    found, digest = read_pixels_with_digest(path, test)
    assert found.dtype == image.dtype and np.array_equal(found, image)
    assert found.flags.c_contiguous and digest == pixels_digest(path, test)
    assert np.array_equal(decode_pixels(path.read_bytes(), "upload", test), image)


def test_png_keeps_16_bits_and_alpha(tmp_path: Path) -> None:
    image = pixels(4)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[..., [2, 1, 0, 3]])  # OpenCV writes BGRA
    found = read_pixels(path, of(["red", "green", "blue", "alpha"]))
    assert found.dtype == np.uint16 and np.array_equal(found, image)


def test_pages_of_a_tiff_are_channels(tmp_path: Path) -> None:
    image = pixels(3, np.uint8)
    path = write_pages(tmp_path / "a.tif", [image[..., k].copy() for k in range(3)])
    assert np.array_equal(read_pixels(path, of(["a", "b", "c"])), image)


def test_signed_and_long_values_count_as_float32(tmp_path: Path) -> None:
    heights = np.array([[[-431.0, 8848.0]]]).astype(np.int16)
    found = read_pixels(write_tiff(tmp_path / "a.tif", heights), of(["low", "high"]))
    assert found.dtype == np.float32 and found.tolist() == [[[-431.0, 8848.0]]]


def test_several_files_make_one_image(tmp_path: Path) -> None:
    """Color of 8 bits beside it, depth of 16 bits in a folder of its own."""
    color, near, depth = pixels(3, np.uint8), pixels(1, np.uint8), pixels(1)
    (tmp_path / "images").mkdir()
    (tmp_path / "depth").mkdir()
    path = tmp_path / "images" / "a.png"
    cv2.imwrite(str(path), color[..., ::-1])
    cv2.imwrite(str(tmp_path / "images" / "a_nir.png"), near)
    write_tiff(tmp_path / "depth" / "a.tif", depth)
    names = ["red", "green", "blue", "nir", "depth"]
    test = of(names, files=["{stem}_nir.png", "../depth/{stem}.tif"])
    found, digest = read_pixels_with_digest(path, test)
    assert found.dtype == np.uint16
    assert np.array_equal(found, np.concatenate([color, near, depth], axis=2))
    assert [image.path.name for image in find_images(path.parent, channels=test.channels)] == [
        "a.png"  # a_nir.png is no image of its own
    ]
    write_tiff(tmp_path / "depth" / "a.tif", depth + 1)
    assert pixels_digest(path, test) not in (None, digest), "a changed further file is noticed"
    with pytest.raises(DataError, match="images of 3 files each"):
        decode_pixels(path.read_bytes(), "upload", test)
    (tmp_path / "depth" / "a.tif").unlink()
    with pytest.raises(DataError, match=r"depth.a\.tif"):
        read_pixels(path, test)


def test_values_in_memory(tmp_path: Path) -> None:
    image, test = pixels(5), of(FIVE)
    for value in (image, image.transpose(2, 0, 1), torch.from_numpy(image.astype(np.float32))):
        assert np.array_equal(as_image(value, test), image)
    with pytest.raises(DataError, match=r"3 channels of uint16\n  expected: 5: blue, nir"):
        as_image(image[..., :3], test)


# ---- Refusing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: write_tiff(path, pixels(4)),
            "4 channels of uint16\n  expected: 5: blue, nir",
        ),
        (lambda path: write_tiff(path, pixels(7)), "7 channels of uint16\n  expected: 5"),
        (lambda path: path.write_bytes(b"II*\0\xff\xff\xff\xff"), "cannot be decoded"),
        (lambda path: np.save(path.open("wb"), np.array([{}])), "cannot be read"),
        (lambda path: np.save(path.open("wb"), np.zeros((2, 3, 4, 5))), "shape (2, 3, 4, 5)"),
        (lambda path: np.save(path.open("wb"), np.zeros((2, 3, 5), complex)), "complex128"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "a.tif"
    make(path)
    with pytest.raises(DataError) as caught:
        read_pixels(path, of(FIVE))
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_files_of_one_image_must_have_one_size(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.uint8))
    np.save(tmp_path / "a_b.npy", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"6x4 pixels, while .*a\.npy has 5x4"):
        read_pixels(tmp_path / "a.npy", of(["a", "b"], files=["{stem}_b.npy"]))


def test_values_of_another_type_are_refused(tmp_path: Path) -> None:
    """8 bits where 16 were trained on would look black to the network."""
    path = write_tiff(tmp_path / "a.tif", pixels(2, np.uint8))
    with pytest.raises(DataError, match=r"values of uint8\n  expected: uint16, as in the training"):
        read_pixels(path, of(["a", "b"], types=["uint16", "uint16"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rgb": ["a", "b", "c"]}, "given without data.channels.names"),
        ({"names": ["a", "a"]}, "a name of its own"),
        ({"names": ["a", "b"], "mean": [1.0]}, "1 entries"),
        ({"names": ["a", "b"], "rgb": ["a", "b", "c"]}, "'c', which is no channel"),
        ({"names": ["a"], "files": ["nir.png"]}, "holds {stem} once"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.model_validate({"data": {"channels": options}})
    assert message in str(caught.value)


def test_a_small_file_of_a_huge_image_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    shape = {"height": 60_000, "width": 60_000, "count": 2, "dtype": "uint16"}
    rasterio.open(
        path, "w", driver="GTiff", tiled=True, sparse_ok=True, compress="deflate", **shape
    ).close()
    assert path.stat().st_size < 2_000_000
    with pytest.raises(DataError, match="60000x60000 pixels"):
        read_pixels(path, of(["a", "b"]))


def test_metadata_cannot_name_other_files(tmp_path: Path) -> None:
    """As a part of the image: an upload would get the pixels of files of the server."""
    secret = write_tiff(tmp_path / "secret.tif", pixels(1))
    path = write_tiff(tmp_path / "a.tif", pixels(4))
    with rasterio.open(path, "r+") as target:
        names = {"SUBDATASET_1_NAME": str(path), "SUBDATASET_2_NAME": str(secret)}
        target.update_tags(ns="SUBDATASETS", **names)
    with pytest.raises(DataError, match="4 channels of uint16"):
        read_pixels(path, of(FIVE))


def test_declared_nodata_and_largest_floats_are_the_mean(tmp_path: Path) -> None:
    image = np.array([[[1.0], [3.0], [-9999.0], [-3.4e38]]], np.float32)
    path = write_tiff(tmp_path / "a.tif", image, nodata=-9999.0)
    measured = measured_channels([path], ChannelsConfig(names=["height"]))
    assert measured.mean == [2.0] and measured.std == [1.0]
    found = read_pixels(path, ChannelTestConfig(channels=measured))
    assert found[..., 0].tolist() == [[1.0, 3.0, 2.0, 2.0]]


def test_an_array_has_the_joint_type_of_several_files() -> None:
    test = of(["color", "depth"], types=["uint8", "uint16"])
    assert as_image(pixels(2), test).dtype == np.uint16
    with pytest.raises(DataError, match="values of uint8"):
        as_image(pixels(2, np.uint8), test)


def test_pillow_images_are_read_as_their_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(3, np.uint8)).quantize(7).save(path)
    test = of(["red", "green", "blue"])
    assert np.array_equal(as_image(Image.open(path), test), read_pixels(path, test))
    with pytest.raises(DataError, match="the image itself among its further files"):
        read_pixels(path, of(["red", "green", "blue", "more"], files=["{stem}.png"]))


def test_a_constant_channel_keeps_its_scale(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((333, 777, 2), (0.1, 1234.567), np.float32))
    assert measured_channels([tmp_path / "a.npy"], ChannelsConfig(names=["a", "b"])).std == [1, 1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data.channels.rgb=[b4,b3,b2]", ["b4", "b3", "b2"]),
        ("data.channels.types=[uint16,uint8]", ["uint16", "uint8"]),
        ("data.channels.names=red,nir", ["red", "nir"]),
        ("loss.class_weights=auto", "auto"),
    ],
)
def test_lists_are_typed_without_quotes(text: str, value: object) -> None:
    assert parse_overrides([text]) == {text.partition("=")[0]: value}


# ---- Measuring and normalizing ---------------------------------------------------------------


def test_mean_and_deviation_over_all_pixels(tmp_path: Path) -> None:
    """Each pixel counts the same, whatever the size of its image; missing values do not count."""
    nan = np.nan
    np.save(tmp_path / "a.npy", np.array([[[1, 10], [3, 10]]], np.float32))
    np.save(tmp_path / "b.npy", np.array([[[5, nan], [nan, 10], [nan, 10]]], np.float32))
    found = measured_channels(sorted(tmp_path.iterdir()), ChannelsConfig(names=["a", "b"]))
    assert found.mean == [3.0, 10.0]
    assert found.std == pytest.approx([np.sqrt(8 / 3), 1.0])  # a constant channel stays as it is
    assert found.types == ["float32", "float32"]
    given = ChannelsConfig(names=["a", "b"], mean=[0, 0], std=[2, 2], types=["float32"] * 2)
    assert measured_channels([tmp_path / "missing.npy"], given) is given


def test_images_of_several_types_are_refused_when_measured(tmp_path: Path) -> None:
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path, kind in zip(paths, (np.uint16, np.uint8), strict=True):
        write_tiff(path, pixels(2, kind))
    with pytest.raises(DataError, match=r"b\.tif: values of uint8\n  expected: uint16, as in"):
        measured_channels(paths, ChannelsConfig(names=["a", "b"]))


def test_normalization_by_hand() -> None:
    channels = ChannelsConfig(names=["a", "b"], mean=[100.0, 2.0], std=[50.0, 0.5])
    image = np.array([[[200, 1], [0, np.inf]], [[np.nan, 2], [100, 3]]], np.float32)
    found = normalize(image, channels)
    assert found.tolist() == [[[2.0, -2.0], [0.0, 0.0]], [[-2.0, 0.0], [0.0, 2.0]]]
    with pytest.raises(ConfigError, match=r"data\.channels\.mean"):
        normalize(image, ChannelsConfig(names=["a", "b"]))


def test_pictures_show_red_green_and_blue() -> None:
    channels = ChannelsConfig(names=FIVE, mean=[0, 0, 10, 20, 0], std=[1, 1, 2, 4, 1])
    image = np.array([[[0, 9, 10, 20, 9], [2.5, 9, 5, 28, 9]]], np.float32)
    assert as_picture(image, channels).tolist() == [[[127, 127, 127], [0, 229, 255]]]
    gray = ChannelsConfig(names=["depth"], mean=[0], std=[1])
    assert as_picture(image[..., :1], gray).tolist() == [[[127] * 3, [255] * 3]]


# ---- Varying ---------------------------------------------------------------------------------


def photo_channels() -> ChannelsConfig:
    return ChannelsConfig(names=["red", "green", "blue"], mean=list(MEAN), std=list(STD))


@pytest.mark.parametrize("seed", range(6))
def test_photos_vary_as_published(seed: int) -> None:
    """With a photo's own mean and deviation, up to the clipping of the published 8-bit steps."""
    flat = PhotometricConfig(brightness=10, contrast=(0.9, 1.1), saturation=(0.9, 1.1), hue=4)
    gray = np.random.default_rng(1).integers(70, 180, (16, 16, 3)).astype(np.uint8)
    gray[..., :] = cv2.GaussianBlur(gray, (0, 0), 2)
    wanted = distort_colors(gray, flat, np.random.default_rng(seed)).astype(float)
    found = distort_channels(gray, flat, np.random.default_rng(seed), photo_channels())
    # The scale of gray levels is the same for all channels, ImageNet's differs by 1.5 %.
    assert np.abs(found - wanted).max() < 6


def test_colors_vary_in_red_green_and_blue_alone() -> None:
    channels = ChannelsConfig(names=FIVE, mean=[1000.0] * 5, std=[300.0] * 5)
    image = pixels(5) % 2000
    only = {"probability": 1.0, "brightness": 0.0, "contrast": (1.0, 1.0)}
    config = PhotometricConfig(**only, saturation=(0.5, 0.5), hue=18)
    found = distort_channels(image, config, np.random.default_rng(0), channels)
    assert np.allclose(found[..., [1, 4]], image[..., [1, 4]], atol=0.01)
    assert np.abs(found[..., [0, 2, 3]] - image[..., [0, 2, 3]]).mean() > 10
    nameless = ChannelsConfig(names=list("abcde"), mean=[1000.0] * 5, std=[300.0] * 5)
    found = distort_channels(image, config, np.random.default_rng(0), nameless)
    assert np.allclose(found, image, atol=0.01)


def test_brightness_varies_in_all_channels_alike() -> None:
    """By the same share of each channel's deviation."""
    channels = ChannelsConfig(names=FIVE, mean=[10.0] * 5, std=[1.0, 2.0, 4.0, 8.0, 16.0])
    config = PhotometricConfig(
        probability=1.0, contrast=(1, 1), saturation=(1, 1), hue=0, brightness=32
    )
    image = np.full((2, 2, 5), 10, np.uint8)
    found = distort_channels(image, config, np.random.default_rng(3), channels)[0, 0] - 10
    shares = found / np.array(channels.std)
    assert np.allclose(shares, shares[0], atol=1e-4) and abs(shares[0]) > 0.01


def test_geometry_of_seven_channels() -> None:
    """Mirrored and rotated like each channel alone; corners get each channel's mean."""
    image, labels = pixels(7, size=(16, 16)), np.zeros((16, 16), np.uint8)
    assert np.array_equal(flip(image, horizontal=True), image[:, ::-1])
    mean = [float(100 * k) for k in range(7)]
    found, ids = rotate(image, labels, 45, 255, mean)
    assert found.dtype == np.uint16 and found[0, 0].tolist() == mean and ids[0, 0] == 255
    for k in range(7):
        alone, _ = rotate(image[..., k : k + 1], labels, 45, 255, mean[k : k + 1])
        assert np.array_equal(alone[..., 0], found[..., k])


def test_crops_of_a_single_channel_keep_their_axis() -> None:
    channels = ChannelsConfig(names=["depth"], mean=[100.0], std=[10.0], types=["uint16"])
    config = AugmentConfig(scale=(64, 48), crop_size=(32, 32), rotation=10, vertical_flip=0.5)
    transform = TrainTransform(config, channels=channels)
    labels = (np.arange(48 * 64).reshape(48, 64) % 3).astype(np.uint8)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        plan = transform.plan(labels, rng)
        image, ids = transform.finish(*transform.render(pixels(1, size=(48, 64)), plan, rng))
        assert image.shape == (1, 32, 32) and ids.shape == (32, 32)
        assert np.isfinite(image).all()


# ---- Weights ---------------------------------------------------------------------------------


def test_weights_for_rgb_are_carried_over(tmp_path: Path) -> None:
    """A gray image in equal channels gives what it gave; named channels keep their weights."""
    stem = "backbone.patch_embed.0.weight"
    with small_variant() as name:
        source = create_model(name, 4)
        save_safetensors(source, tmp_path / "rgb.safetensors")
        kept = of(["blue", "green", "red"]).model_dump(mode="json")
        turned = create_model(name, 4, preprocessing=kept)
        note = load_weights(turned, tmp_path / "rgb.safetensors", verbose=False).notes
        weight = source.state_dict()[stem]
        plain = create_model(name, 4, in_channels=5)
        report = load_weights(plain, tmp_path / "rgb.safetensors", verbose=False)
        settings = of(FIVE).model_dump(mode="json")
        named = create_model(name, 4, in_channels=5, preprocessing=settings)
        load_weights(named, tmp_path / "rgb.safetensors", verbose=False)
    assert torch.equal(turned.state_dict()[stem], weight[:, [2, 1, 0]]) and "for RGB" in note[0]
    assert "each channel gets their mean over RGB, times 3 / 5" in str(report)
    found = plain.state_dict()[stem]
    assert torch.allclose(found.sum(dim=1), weight.sum(dim=1), atol=1e-6)
    found = named.state_dict()[stem]
    assert torch.equal(found[:, [2, 3, 0]], weight)
    assert torch.allclose(found[:, 1], weight.mean(dim=1)) and torch.equal(found[:, 1], found[:, 4])


# ---- The doctor ------------------------------------------------------------------------------


def test_the_doctor_measures_and_names_other_types(tmp_path: Path) -> None:
    for part in ("images", "annotations"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for number in range(4):
        write_tiff(tmp_path / "images" / f"{number}.tif", pixels(2) + number)
        ids = (np.arange(9 * 14).reshape(9, 14) % 2).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "annotations" / f"{number}.png"), ids)
    data = {"dataset": "custom", "root": str(tmp_path), "channels": {"names": ["x", "y"]}}
    augment = {"scale": [32, 32], "crop_size": [32, 32]}
    config = Config.model_validate({"data": data, "augment": augment})
    report = check_dataset(config.data, test=config.preprocessing)
    assert report.ok and report.channels is not None and report.channels.types == ["uint16"] * 2
    assert "  x: uint16, mean " in report.text()
    sheet = write_sheet(config, tmp_path / "sheet.html", augmented=True, count=2)
    assert sheet.shown == 2 and not sheet.problems
    write_tiff(tmp_path / "images" / "3.tif", pixels(2, np.uint8))
    report = check_dataset(config.data, test=config.preprocessing, quick=True)
    assert {finding.code for finding in report.findings} == {"image-types"} and not report.ok
    assert "values of uint8; expected: uint16" in report.findings[0].message


def test_rgb_is_read_as_before(tmp_path: Path) -> None:
    """Without names nothing of this applies."""
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels(3, np.uint8))
    assert np.array_equal(read_pixels(path, TestConfig()), as_image(path))
    assert Config().preprocessing is not None
    assert "channels" not in Config().preprocessing.model_dump()


def test_further_files_at_addresses() -> None:
    """Beside their image, wherever that lies."""
    import fsspec

    system = fsspec.filesystem("memory")
    one, two = pixels(1), pixels(1) + 7
    for name, array in (("c/images/a.npy", one), ("c/near/a.npy", two)):
        with system.open(name, "wb") as stream:
            np.save(stream, array)
    test = of(["x", "y"], files=["../near/{stem}.npy"])
    found = read_pixels("memory://c/images/a.npy", test)
    assert np.array_equal(found, np.concatenate([one, two], axis=2))
    [image] = find_images("memory://c/images/", channels=test.channels)
    assert np.array_equal(as_image(image.path, test), found)


def test_an_array_whose_header_claims_too_much(tmp_path: Path) -> None:
    """It is damage, not a lack of memory."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((40, 50, 2), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(40, 50, 2)", b"(9999999999999, 9, 2)"))
    with pytest.raises(DataError, match=r"claims 720000000000000 bytes|cannot be read"):
        read_pixels(path, of(["a", "b"]))
    np.save(path, np.zeros((40, 50, 2), np.float32))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="claims 16000 bytes of values, and there are 15999"):
        read_pixels(path, of(["a", "b"]))


def test_a_tile_counts_whole(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs the extra [geo]")
    shape = {"height": 30, "width": 50, "count": 2, "dtype": "uint8", "tiled": True}
    for side in (1024, 2048):
        path, tiles = tmp_path / f"{side}.tif", {"blockxsize": side, "blockysize": side}
        with rasterio.open(path, "w", driver="GTiff", compress="deflate", **shape, **tiles) as to:
            to.write(np.zeros((2, 30, 50), np.uint8))
    assert read_pixels(tmp_path / "1024.tif", of(["a", "b"])).shape == (30, 50, 2)
    with pytest.raises(DataError, match="tiles of 2048x2048 pixels in an image of 50x30"):
        read_pixels(tmp_path / "2048.tif", of(["a", "b"]))
