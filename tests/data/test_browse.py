"""The contact sheet: pictures and labels inside it are what the loaders give."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.config.schema import Config
from cgrseg.config.settings import build, merge
from cgrseg.data.browse import labels_png, write_sheet
from cgrseg.data.color import MEAN, STD
from cgrseg.data.dataset import EvalDataset, TrainDataset
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.data.pairs import find_pairs
from cgrseg.data.sampling import StreamSampler
from cgrseg.datasets import get_spec
from cgrseg.errors import DataError


@pytest.fixture
def config(shared_data):
    return Config.model_validate(
        {"data": {"dataset": "ade20k", "root": str(shared_data / "ade20k_samples")}}
    )


class Pictures(HTMLParser):
    """Decoded pictures of a page, and everything that it would fetch from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.photos, self.labels, self.outside, self.titles = [], [], [], []
        self.in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        for name in ("src", "href"):
            address = found.get(name, "")
            if address and not address.startswith("data:"):
                self.outside.append(address)
        if tag == "img":
            kind = self.labels if found.get("class") == "labels" else self.photos
            data = base64.b64decode(found["src"].partition(",")[2], validate=True)
            kind.append(Image.open(io.BytesIO(data)))
        self.in_title = tag == "b"

    def handle_data(self, data):
        if self.in_title:
            self.titles.append(data)
            self.in_title = False


def test_the_page_holds_images_and_their_labels(config, tmp_path):
    sheet = write_sheet(config, tmp_path / "sheet.html", split="val", width=200)
    page = Pictures((tmp_path / "sheet.html").read_text())
    dataset = EvalDataset.from_config(config, "val")
    assert (sheet.shown, sheet.problems) == (3, ())
    assert page.outside == []
    assert page.titles == [pair.stem for pair in dataset.pairs]
    palette = np.array(dataset.spec.palette)
    for index, (photo, labels) in enumerate(zip(page.photos, page.labels, strict=True)):
        sample = dataset[index]
        height, width = sample["label"].shape
        size = (200, round(height * 200 / width))
        assert photo.size == labels.size == size
        small = cv2.resize(sample["image"], size, interpolation=cv2.INTER_AREA)
        assert np.abs(np.asarray(photo, int) - small).mean() < 4
        expected = cv2.resize(sample["label"], size, interpolation=cv2.INTER_NEAREST)
        shown = np.asarray(labels.convert("RGBA"))
        known = expected != 255
        assert np.array_equal(shown[known][:, :3], palette[expected[known]])
        assert (shown[known][:, 3] == 255).all()


def test_augmented_samples_are_those_of_training(config, tmp_path):
    write_sheet(config, tmp_path / "sheet.html", augmented=True, count=5)
    page = Pictures((tmp_path / "sheet.html").read_text())
    dataset = TrainDataset.from_config(config)
    keys = [key for key, _ in zip(StreamSampler(2, 0, 4), range(5), strict=False)]
    assert len(page.photos) == 5
    for key, photo, labels in zip(keys, page.photos, page.labels, strict=True):
        sample = dataset[key]
        image = sample["image"].numpy().transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)
        assert photo.size == (512, 512)
        assert np.abs(np.asarray(photo) - image).mean() < 4
        expected = sample["label"].numpy()
        shown = np.asarray(labels)
        assert np.array_equal(shown[expected != 255], expected[expected != 255])
        assert set(np.unique(shown[expected == 255])) <= {254, 255}


def test_augmented_samples_grow_as_those_of_training(config, tmp_path):
    changes = {
        "augment.crop_size": [64, 64],
        "augment.progressive": [0.5, 1],
        "train.batch_size": 1,
        "train.accumulate": 2,
        "schedule.max_iters": 2,
    }
    config = build(merge(config.model_dump(), changes))
    write_sheet(config, tmp_path / "sheet.html", augmented=True, count=3)
    text = (tmp_path / "sheet.html").read_text()
    assert [photo.size for photo in Pictures(text).photos] == [(32, 32), (32, 32), (64, 64)]
    assert "sample 1, iteration 1" in text and "sample 2, iteration 2" in text


def test_ignored_pixels_are_transparent_with_lines_eight_apart():
    spec = get_spec("camvid")
    labels = np.full((9, 9), 255, np.uint8)
    labels[0, :3] = 4
    shown = Image.open(io.BytesIO(labels_png(spec, labels)))
    pixels = np.asarray(shown.convert("RGBA"))
    assert pixels[0, 0].tolist() == [*spec.palette[4], 255]
    assert pixels[0, 8].tolist() == pixels[8, 0].tolist() == [0, 0, 0, 255]
    assert pixels[1, 1, 3] == 0
    assert (pixels[..., 3] > 0).sum() == 3 + 8 + 2


def test_only_pictures_with_a_class(config, tmp_path):
    sheet = write_sheet(config, tmp_path / "sheet.html", split="val", class_name="grass")
    spec, pairs = get_spec("ade20k"), find_pairs(get_spec("ade20k"), config.data.root, "val")
    raw = spec.classes.index("grass") + 1
    wanted = {p.stem for p in pairs if raw in cv2.imread(str(p.label), cv2.IMREAD_UNCHANGED)}
    page = Pictures((tmp_path / "sheet.html").read_text())
    assert set(page.titles) == wanted
    assert 0 < sheet.shown < 3
    with pytest.raises(DataError, match="no image with the class 'airplane'"):
        write_sheet(config, tmp_path / "none.html", class_name="airplane")
    with pytest.raises(DataError, match="no class of"):
        write_sheet(config, tmp_path / "none.html", class_name="celing")
    assert not (tmp_path / "none.html").exists()


def custom(root, name="a & <b>"):
    for stem, value in (("one", 0), ("two", 1), ("three", 6)):
        image = np.full((12, 16, 3), 40 * value, np.uint8)
        write_image(root / "images" / "train" / f"{stem}.png", image)
        labels = np.full((12, 16), value, np.uint8)
        write_label_png(root / "annotations" / "train" / f"{stem}.png", labels, ((0, 0, 0),))
    (root / "classes.txt").write_text(f"{name}\nother\n")
    return Config.model_validate({"data": {"dataset": "custom", "root": str(root)}})


def test_what_cannot_be_shown_is_said_in_its_place(tmp_path):
    config = custom(tmp_path / "mine")
    sheet = write_sheet(config, tmp_path / "sheet.html")
    text = (tmp_path / "sheet.html").read_text()
    assert (sheet.shown, len(sheet.problems)) == (3, 1)
    assert "three.png" in sheet.problems[0]
    assert len(Pictures(text).photos) == 2
    assert "ids outside the class list: 6" in text


def test_names_cannot_break_the_page(tmp_path):
    write_sheet(custom(tmp_path / "mine"), tmp_path / "sheet.html")
    text = (tmp_path / "sheet.html").read_text()
    assert "a &amp; &lt;b&gt; 100.0%" in text
    assert "<b>" not in re.sub(r"<figcaption><b>\w+</b>", "", text)


def test_only_contact_sheets_are_replaced(config, tmp_path):
    target = tmp_path / "page.html"
    target.write_text("<html>my thesis</html>")
    with pytest.raises(DataError, match="not a contact sheet"):
        write_sheet(config, target)
    assert target.read_text() == "<html>my thesis</html>"
    write_sheet(config, target, overwrite=True, count=1)
    before = target.read_bytes()
    write_sheet(config, target, count=2)
    assert target.read_bytes() != before
