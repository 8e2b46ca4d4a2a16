"""Images of few bits, and annotations of other tools that are converted."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.class_names import read_class_list
from cgrseg.config.schema import Config, DataConfig, TestConfig
from cgrseg.data import image_files
from cgrseg.data.check import check_dataset
from cgrseg.data.convert import convert_mat_labels, convert_rgb_masks
from cgrseg.data.convert.color_masks import read_color_table
from cgrseg.data.convert.image_names import find_file
from cgrseg.data.dataset import EvalDataset, TrainDataset
from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError
from tests.data import folders


def custom(root: Path, **settings: object) -> DataConfig:
    return DataConfig(dataset="custom", root=str(root), **settings)  # type: ignore[arg-type]


def codes(report) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity != "note"}


# ---- 16-bit images --------------------------------------------------------------------------


def deep_images(root: Path, highest: int) -> Path:
    """16-bit RGB images whose values end at `highest`."""
    folders.write_folder(root)
    for path in list((root / "images").iterdir()):
        ramp = np.linspace(0, highest, folders.SIZE[1]).astype(np.uint16)
        pixels = np.broadcast_to(ramp[None, :, None], (*folders.SIZE, 3)).copy()
        pixels[int(path.stem)] = 0
        cv2.imwrite(str(path.with_suffix(".png")), pixels)
        path.unlink()
    return root


def test_12_bits_in_16_are_named_with_the_setting_that_scales_them(tmp_path):
    root = deep_images(tmp_path, 4095)
    report = check_dataset(root)
    assert codes(report) == {"image-depth", "image-bits"}
    [finding] = [f for f in report.findings if f.code == "image-bits"]
    assert "0 to 15 of 255" in finding.message
    assert "set test.image_bits=12" in finding.remedy
    assert codes(check_dataset(root, test=TestConfig(image_bits=12))) == set()
    [finding] = [f for f in check_dataset(root, test=TestConfig(image_bits=10)).findings]
    assert "test.image_bits=12" in finding.remedy
    assert codes(check_dataset(deep_images(tmp_path / "full", 65535))) == {"image-depth"}


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_values_of_fewer_bits_fill_the_range(tmp_path, bits):
    root = deep_images(tmp_path, 2**bits - 1)
    path = root / "images" / "0.png"
    image = read_image(path, bits=bits)
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert np.array_equal(image, stored >> (bits - 8))
    assert image.max() == 255
    plain = tmp_path / "plain.png"
    Image.fromarray(image).save(plain)
    assert np.array_equal(read_image(plain, bits=bits), image)  # 8-bit images are not changed


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_16_bits_are_read_as_opencv_reads_them(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 2**16, (20, 30, channels), dtype=np.uint16)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(read_image(path), expected)


def test_dark_16_bit_images_are_said_wherever_they_are_read(tmp_path, caplog):
    path = deep_images(tmp_path, 4095) / "images" / "0.png"
    image_files._warn_dark.cache_clear()
    with caplog.at_level("WARNING", logger="cgrseg.data"):
        read_image(path)
        read_image(path)
        read_image(path, bits=12)
    [record] = caplog.records
    assert "test.image_bits=12" in record.getMessage()
    assert "0 to 15 of 255" in record.getMessage()


def test_training_and_evaluation_read_the_bits_of_the_settings(tmp_path):
    root = deep_images(tmp_path, 4095)
    config = Config(data=custom(root), test={"image_bits": 12, "scale": [64, 48]})
    assert EvalDataset.from_config(config)[0]["image"].max() == 255
    assert EvalDataset.from_config(Config(data=custom(root)))[0]["image"].max() == 15
    assert TrainDataset.from_config(config).test.image_bits == 12


# ---- Conversions ----------------------------------------------------------------------------


def test_colors_as_cvat_writes_them(tmp_path):
    table = tmp_path / "labelmap.txt"
    table.write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nparking place:61,61,245::\n"
        "car:250,50,83:wheel,door:driving\nbare:1,2,3\n"
    )
    assert read_color_table(table) == {
        (0, 0, 0): "background",
        (61, 61, 245): "parking place",
        (250, 50, 83): "car",
        (1, 2, 3): "bare",
    }


def test_converters_pair_names_of_both_forms(tmp_path):
    root = folders.decomposed(tmp_path)
    for path in (root / "annotations").iterdir():
        values = read_label(path)
        Image.fromarray(np.stack([values * 128] * 3, axis=-1)).save(path)
    named = {(0, 0, 0): "sky", (128, 128, 128): "road"}
    out = tmp_path / "out"
    report = convert_rgb_masks(root / "images", root / "annotations", out, colors=named)
    assert (report.written, report.failures) == (4, [])
    assert codes(check_dataset(out)) == set()
    stem = next((root / "images").glob("M*.jpg")).name
    assert find_file(root / "images" / unicodedata.normalize("NFC", stem)).is_file()


def matlab_files(root: Path, **more: object) -> Path:
    scipy = pytest.importorskip("scipy.io", reason="MATLAB files need the extra 'convert'")
    folders.write_folder(root, classes=("road",))
    for path in list((root / "annotations").iterdir()):
        scipy.savemat(path.with_suffix(".mat"), {"labels": read_label(path), **more})
        path.unlink()
    return root


def test_matlab_files_beside_images_are_named_and_converted(tmp_path):
    root = matlab_files(tmp_path / "mine")
    (root / "classes.txt").write_text("sky\nroad\n")
    error = check_dataset(root).findings[0]
    assert "0.mat is there" in error.message
    command = f"cgrseg data convert mat {root}/images {root}/annotations OUT"
    assert command in error.remedy
    out = tmp_path / "out"
    report = convert_mat_labels(root / "images", root / "annotations", out, classes=["sky", "road"])
    assert (report.written, report.failures) == (4, [])
    assert np.array_equal(read_label(out / "annotations" / "2.png"), folders.labels(2))
    assert codes(check_dataset(out)) == set()


def test_matlab_files_with_more_variables_or_values_are_named(tmp_path):
    root = matlab_files(tmp_path / "mine", other=[1])
    folders_of = (root / "images", root / "annotations")
    report = convert_mat_labels(*folders_of, tmp_path / "a", classes=["sky", "road"])
    assert report.written == 0
    assert "2 variables: labels, other" in report.failures[0].message
    assert "--field" in report.failures[0].message
    done = convert_mat_labels(
        *folders_of, tmp_path / "b", classes=["none", "road"], ignored=["none"], field="labels"
    )
    assert (done.written, done.classes) == (4, ("road",))
    values = read_label(tmp_path / "b" / "annotations" / "1.png")
    assert np.array_equal(values, np.where(folders.labels(1) == 0, 255, 0))
    more: dict[str, Any] = {"ignored": ["none"], "field": "labels"}
    added = convert_mat_labels(*folders_of, tmp_path / "b", classes=["none", "road", "sky"], **more)
    assert added.kept == 4
    assert read_class_list(tmp_path / "b" / "classes.txt") == added.classes == ("road", "sky")
    with pytest.raises(DataError, match="made with other settings"):
        convert_mat_labels(
            *folders_of,
            tmp_path / "b",
            classes=["none", "none2", "road", "sky"],
            ignored=["none", "none2"],
            field="labels",
        )
    few = convert_mat_labels(*folders_of, tmp_path / "c", classes=["sky"], field="labels")
    assert "values without a name: 1" in few.failures[0].message
