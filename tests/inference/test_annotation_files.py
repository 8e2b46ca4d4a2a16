"""Annotation files for labeling tools: content, way back, and what is never overwritten."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cgrseg.data.convert.formats import formats, recognize, writers
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.convert.tracing import region_scores
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.datasets.spec import distinct_colors
from cgrseg.errors import ConfigError
from cgrseg.inference.annotation_files import AnnotationSettings, save_annotations
from cgrseg.inference.image_sources import FoundImage

CASES = [(name, shape) for name, writer in writers().items() for shape in writer.shapes]
CLASSES = ("sky & cloud", "straße", 'a "b" <c>')


@pytest.fixture(scope="module")
def real_images(shared_data):
    """Image, label map and classes of 20 images: 15 of CamVid, 5 of ADE20K."""
    camvid = (shared_data / "camvid/classes.txt").read_text().split()
    ade = [f"class {number}" for number in range(150)]
    found = []
    for folder, names, count in (
        (shared_data / "camvid", camvid, 15),
        (shared_data / "ade20k_samples", ade, 5),
    ):
        files = sorted((folder / "annotations").rglob("*.png"))
        for label in files[:: len(files) // count][:count]:
            (image,) = (folder / "images").rglob(f"{label.stem}.*")
            labels = read_label(label)
            if names is ade:
                labels = labels - np.uint8(1)  # 0, unlabeled, becomes 255
            found.append((image, labels, names))
    assert len(found) == 20
    return found


def save(folder, images, classes, names, **options):
    """Write annotation files of images with given label maps; scores as a prediction has them."""
    settings = AnnotationSettings(names, **options)
    listed = []
    for image, labels in images:
        target = folder / "labels" / f"{image.stem}.png"
        write_label_png(target, labels, distinct_colors(len(classes)))
        confidence = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
        scores = np.rint(region_scores(labels, confidence, len(classes)) * 1000).astype(int)
        listed.append((FoundImage(image, image.stem), target, ",".join(map(str, scores))))
    return save_annotations(folder, listed, classes, distinct_colors(len(classes)), settings)


def as_annotations(tasks):
    """Tasks as Label Studio exports them after their predictions were accepted."""
    for task in tasks:
        task["annotations"] = [{"result": each["result"]} for each in task.pop("predictions")]
    return tasks


def convert_back(name, folder, image_folder, classes, out):
    """Label maps of `cgrseg data convert`, by stem."""
    source = folder / name
    if name == "label-studio":
        tasks = as_annotations(json.loads((source / "tasks.json").read_text("utf-8")))
        source = folder / "exported.json"
        source.write_text(json.dumps(tasks), "utf-8")
    arguments = [source, out]
    options = {"classes": classes, "images": image_folder}
    if name == "coco":
        arguments, options = [source / "annotations.json", image_folder, out], {}
    report = run_conversion(formats()[name](*arguments, **options))
    assert report.ok, report.text()
    return {path.stem: read_label(path) for path in (out / "annotations").rglob("*.png")}


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_real_label_maps_come_back_exactly(name, shape, real_images, tmp_path):
    for number, classes in enumerate({tuple(names): None for _, _, names in real_images}):
        images = [(i, labels) for i, labels, names in real_images if tuple(names) == classes]
        folder = tmp_path / str(number)
        report = save(folder, images, classes, [name], shape=shape)
        assert report.images == len(images) and not report.failed and not report.kept
        beside = folder / "images"
        beside.mkdir()
        for image, _ in images:
            (beside / image.name).write_bytes(image.read_bytes())
        found = convert_back(name, folder, beside, classes, tmp_path / f"out{number}")
        assert found.keys() == {image.stem for image, _ in images}
        for image, labels in images:
            np.testing.assert_array_equal(found[image.stem], labels)


@pytest.fixture()
def scene(tmp_path):
    """An image and its label map: a ring in class 0, class 2 inside, and an ignored pixel."""
    labels = np.zeros((12, 16), np.uint8)
    labels[2:10, 3:13] = 1
    labels[4:8, 5:10] = 2
    labels[5, 6] = 255
    image = tmp_path / "images" / "bild 1 & ü.png"
    write_image(image, np.zeros((12, 16, 3), np.uint8))
    return image, labels


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_odd_names_holes_and_ignored_pixels_come_back(name, shape, scene, tmp_path):
    image, labels = scene
    save(tmp_path, [scene], CLASSES, [name], shape=shape)
    found = convert_back(name, tmp_path, image.parent, CLASSES, tmp_path / "out")
    np.testing.assert_array_equal(found[image.stem], labels)


@pytest.mark.parametrize("name", ["cvat", "label-studio", "geojson"])
def test_images_of_one_name_in_two_folders_come_back(name, scene, tmp_path):
    _, labels = scene
    listed = []
    for folder, value in (("cam1", 0), ("cam2", 1)):
        path = tmp_path / "scenes" / folder / "1.png"
        write_image(path, np.zeros((12, 16, 3), np.uint8))
        target = tmp_path / "labels" / folder / "1.png"
        write_label_png(target, np.full_like(labels, value), distinct_colors(len(CLASSES)))
        listed.append((FoundImage(path, f"{folder}/1"), target, None))
    settings = AnnotationSettings([name])
    save_annotations(tmp_path, listed, CLASSES, distinct_colors(len(CLASSES)), settings)
    convert_back(name, tmp_path, tmp_path / "scenes", CLASSES, tmp_path / "out")
    for folder, value in (("cam1", 0), ("cam2", 1)):
        assert (read_label(tmp_path / f"out/annotations/{folder}/1.png") == value).all()


@pytest.mark.parametrize("name", writers())
def test_written_files_are_recognized(name, scene, tmp_path):
    save(tmp_path, [scene], CLASSES, [name])
    source = tmp_path / name
    if name == "label-studio":
        (source / "tasks.json").write_text(
            json.dumps(as_annotations(json.loads((source / "tasks.json").read_text("utf-8"))))
        )
    if writers()[name].file in ("tasks.json", "annotations.json"):
        source /= writers()[name].file
    assert list(recognize(source)) == [name]


def test_scores_are_the_mean_confidence_of_regions_and_images(scene, tmp_path):
    image, labels = scene
    save(tmp_path, [scene], CLASSES, list(writers()))
    confidence = np.linspace(0, 1, labels.size).reshape(labels.shape)
    expected = [confidence[labels == value].mean() for value in range(3)]
    coco = json.loads((tmp_path / "coco/annotations.json").read_text("utf-8"))
    assert [each["score"] for each in coco["annotations"]] == pytest.approx(expected, abs=1e-3)
    assert [each["area"] for each in coco["annotations"]] == [112, 60, 19]
    (task,) = json.loads((tmp_path / "label-studio/tasks.json").read_text("utf-8"))
    (prediction,) = task["predictions"]
    assert prediction["score"] == pytest.approx(confidence[labels < 3].mean(), abs=1e-3)
    shapes = json.loads((tmp_path / "labelme" / f"{image.stem}.json").read_text("utf-8"))["shapes"]
    assert [each["score"] for each in shapes] == pytest.approx(expected, abs=1e-3)
    ring = json.loads((tmp_path / "geojson" / f"{image.stem}.geojson").read_text("utf-8"))
    (feature,) = [f for f in ring["features"] if f["properties"]["class"] == CLASSES[1]]
    assert len(feature["geometry"]["coordinates"]) == 2  # a polygon with a hole


def test_files_that_somebody_changed_are_kept(scene, tmp_path):
    save(tmp_path, [scene], CLASSES, ["labelme", "coco"])
    corrected = tmp_path / "labelme" / f"{scene[0].stem}.json"
    joint = tmp_path / "coco/annotations.json"
    for path in (corrected, joint):
        path.write_text(path.read_text("utf-8").replace("0.", "0.0"), "utf-8")
    before = corrected.read_bytes(), joint.read_bytes()
    report = save(tmp_path, [scene], CLASSES, ["labelme", "coco"])
    assert set(report.kept) == {corrected, joint}
    assert (corrected.read_bytes(), joint.read_bytes()) == before
    colors = distinct_colors(3)
    label = tmp_path / "labels" / f"{scene[0].stem}.png"
    settings = AnnotationSettings(["labelme", "coco"])
    listed = [(FoundImage(scene[0], scene[0].stem), label, None)]
    report = save_annotations(tmp_path, listed, CLASSES, colors, settings, overwrite=True)
    assert not report.kept
    assert corrected.read_bytes() != before[0] and joint.read_bytes() != before[1]


def test_unchanged_files_grow_with_the_images(scene, tmp_path):
    image, labels = scene
    other = image.with_name("second.png")
    write_image(other, np.zeros((12, 16, 3), np.uint8))
    save(tmp_path, [scene], CLASSES, ["coco"])
    report = save(tmp_path, [scene, (other, labels)], CLASSES, ["coco"])
    assert not report.kept
    coco = json.loads((tmp_path / "coco/annotations.json").read_text("utf-8"))
    assert [each["file_name"] for each in coco["images"]] == [image.name, other.name]
    assert [each["id"] for each in coco["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_an_error_half_way_leaves_the_files_as_they_were(scene, tmp_path, monkeypatch):
    save(tmp_path, [scene], CLASSES, ["cvat"])
    path = tmp_path / "cvat/annotations.xml"
    before = path.read_bytes()

    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(writers()["cvat"], "end", fail)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, [scene], CLASSES, ["cvat"], tolerance=2)
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == ["annotations.xml", "labels.json"]
    monkeypatch.undo()
    assert not save(tmp_path, [scene], CLASSES, ["cvat"], tolerance=2).kept


def test_a_damaged_label_file_leaves_the_others(scene, tmp_path):
    image, labels = scene
    target = tmp_path / "labels" / "broken.png"
    write_label_png(target, labels, distinct_colors(3))
    target.write_bytes(target.read_bytes()[:60])
    good = tmp_path / "labels" / "good.png"
    write_label_png(good, labels, distinct_colors(3))
    listed = [(FoundImage(image, path.stem), path, None) for path in (target, good)]
    report = save_annotations(
        tmp_path, listed, CLASSES, distinct_colors(3), AnnotationSettings(["coco"])
    )
    assert report.images == 1 and [path for path, _ in report.failed] == [image]
    coco = json.loads((tmp_path / "coco/annotations.json").read_text("utf-8"))
    assert len(coco["images"]) == 1 and "score" not in coco["annotations"][0]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"formats": ["pascal"]}, "'pascal'"),
        ({"formats": ["geojson"], "shape": "mask"}, "for geojson"),
        ({"formats": ["coco"], "tolerance": float("nan")}, "nan"),
    ],
)
def test_wrong_settings_are_named(options, part):
    with pytest.raises(ConfigError, match=part):
        AnnotationSettings(**options)


def test_label_studio_may_be_spelled_without_hyphen():
    assert AnnotationSettings(["labelstudio", "CVAT", "cvat"]).formats == ("label-studio", "cvat")


def test_geojson_of_others(tmp_path):
    """A plain list, several polygons in one feature, points, and no class."""
    write_image(tmp_path / "slide.png", np.zeros((8, 8, 3), np.uint8))

    def square(left, top, side):
        right, bottom = left + side, top + side
        return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]

    tumor = {"classification": {"name": "Tumor"}}
    several = [[square(0, 0, 5), square(1, 1, 3)], [square(2, 2, 1)], [square(6, 6, 2)]]
    features = [
        {"geometry": {"type": "MultiPolygon", "coordinates": several}, "properties": tumor},
        {"geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": tumor},
        {"geometry": {"type": "Polygon", "coordinates": [square(0, 0, 8)]}, "properties": {}},
    ]
    (tmp_path / "slide.geojson").write_text(json.dumps(features))
    arguments = {"source": tmp_path, "out": tmp_path / "out", "background": "rest"}
    report = run_conversion(formats()["geojson"](**arguments))
    assert report.ok and any("1 x Point" in note for note in report.notes), report.text()
    expected = np.zeros((8, 8), np.uint8)
    expected[:5, :5] = 1
    expected[1:4, 1:4] = 0
    expected[2, 2] = 1
    expected[6:, 6:] = 1
    np.testing.assert_array_equal(read_label(tmp_path / "out/annotations/slide.png"), expected)
