"""Label formats of annotation tools: against the label maps that other tools make, and by hand."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from cgrseg.class_names import read_class_list
from cgrseg.data.convert.formats import formats, recognize
from cgrseg.data.convert.formats.label_studio import LabelStudio
from cgrseg.data.convert.regions import decode_brush_runs
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.convert.shapes import decode_mask, fill_ellipse
from cgrseg.data.convert.tool_format import peek_json
from cgrseg.data.guess import guess_dataset
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/label_formats.json").read_text())
HEIGHT, WIDTH = 12, 16
NAMES_OF_MAPILLARY = {
    "Bird": "animal--bird",
    "Separator": "construction--barrier--separator",
    "Bicycle": "object--vehicle--bicycle",
}

# Case of the golden answers: format, path below label_formats, options.
GENUINE = {
    "cvat_task": ("cvat", "cvat_dataset/for_images/export_task/train.xml", {}),
    "cvat_project": ("cvat", "cvat_dataset/for_images/export_project", {}),
    "mapillary": ("mapillary", "mapillary_vistas_dataset", {}),
    "ade20k2017": ("ade20k-full", "ade20k2017_dataset/dataset", {}),
    "ade20k2020": ("ade20k-full", "ade20k2020_dataset/dataset", {}),
    "cityscapes": ("cityscapes", "cityscapes_dataset/dataset", {}),
    "voc": ("voc", "voc_dataset/voc_dataset1", {}),
    "camvid": ("camvid", "camvid_dataset", {}),
    "datumaro_masks": ("datumaro-masks", "common_semantic_segmentation_dataset/dataset", {}),
    "datumaro_masks_prefix": (
        "datumaro-masks",
        "common_semantic_segmentation_dataset/non_standard_dataset",
        {"image_prefix": "image_", "mask_prefix": "gt_"},
    ),
}


def image_file(path, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.zeros((height, width, 3), np.uint8))


def convert(kind, *arguments, **options):
    return run_conversion(formats()[kind](*arguments, **options))


def label_maps(out):
    """Stem and label map of each image, and the class names."""
    found = {
        path.relative_to(out / "annotations").as_posix(): read_label(path)
        for path in sorted((out / "annotations").rglob("*.png"))
    }
    return found, read_class_list(out / "classes.txt")


def converted(tmp_path, kind, *arguments, **options):
    """The only label map of a conversion, and the class names."""
    report = convert(kind, *arguments, tmp_path / "out", **options)
    assert report.ok, report.text()
    maps, names = label_maps(tmp_path / "out")
    (labels,) = maps.values()
    return labels, names


def assert_equal_but_for_outline(labels, golden, points):
    """Equal, but for pixels at most one beside the outline of a polygon."""
    outline = np.zeros(golden.shape, np.uint8)
    cv2.polylines(outline, [np.floor(points).astype(np.int32)], True, 1)
    near = cv2.dilate(outline, np.ones((3, 3), np.uint8)) > 0
    np.testing.assert_array_equal(labels[~near], golden[~near])


# ---- genuine files -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", GENUINE)
def test_genuine_files_give_the_label_maps_of_the_tools(case, shared_data, tmp_path):
    kind, path, options = GENUINE[case]
    for name, more in ((kind, options), ("auto", {})):
        if name == "auto" and options:
            continue
        out = tmp_path / name
        report = convert(name, shared_data / "label_formats" / path, out, **more)
        assert report.ok, report.text()
        maps, names = label_maps(out)
        expected = dict(GOLDEN[case])
        if case == "voc":  # the mask of the other image is not there
            expected.pop("test/2007_000002")
        by_stem = [(Path(key).name, value) for key, value in expected.items()]
        assert len(maps) == len(by_stem)
        for stem, golden in by_stem:
            values = np.array(golden["labels"])
            wanted = np.full(values.shape, 255)
            for value, tool_name in golden["names"].items():
                own = [n for n in names if NAMES_OF_MAPILLARY.get(n, n) == tool_name]
                assert own or kind == "cityscapes"  # classes that are not evaluated
                if own:
                    wanted[values == int(value)] = names.index(own[0])
            ending = "_leftImg8bit.png" if kind == "cityscapes" else ".png"
            file = options.get("image_prefix", "") + stem + ending
            same_name = [labels for path, labels in maps.items() if Path(path).name == file]
            assert same_name
            for labels in same_name:
                if kind == "cvat" and "img1" in stem:
                    assert_equal_but_for_outline(labels, wanted, [(1, 2), (3, 4), (6, 5)])
                else:
                    np.testing.assert_array_equal(labels, wanted)


def test_genuine_polygon_of_label_studio(shared_data, tmp_path):
    golden = GOLDEN["label_studio_polygon"]
    image_file(tmp_path / "images/000000000025.jpg", *golden["size"])
    source = shared_data / "label_formats/label_studio/data_polygons.json"
    options = {"images": tmp_path / "images", "background": "other"}
    labels, names = converted(tmp_path, "label-studio", source, **options)
    assert names == ("other", "Airplane")
    wanted = decode_mask(golden["counts"], *golden["size"]).astype(int)
    assert wanted.sum() > 10_000
    (task,) = json.loads(source.read_text())
    points = task["annotations"][0]["result"][0]["value"]["points"]
    assert_equal_but_for_outline(labels, wanted, np.array(points) * (6.4, 4.26))


def test_genuine_run_lengths_of_coco_stuff(shared_data, tmp_path):
    folder = shared_data / "label_formats/coco_dataset/coco_stuff"
    source = folder / "annotations/stuff_train.json"
    labels, names = converted(tmp_path, "coco", source, folder / "images/train")
    golden = np.array(GOLDEN["coco_stuff"]["train/a"]["labels"])
    assert names == ("a", "b")
    np.testing.assert_array_equal(labels, np.where(golden == -1, 255, golden))


def test_genuine_masks_of_another_size_than_their_image_are_named(shared_data, tmp_path):
    folder = shared_data / "label_formats/coco_dataset/coco_panoptic"
    source = folder / "annotations/panoptic_train.json"
    report = convert("coco-panoptic", source, tmp_path, images=folder / "images/train")
    assert "a label map of 5x5 pixels for a.jpg of 10x5" in report.failures[0].message


def test_genuine_boxes_are_not_painted_unasked(shared_data, tmp_path):
    source = shared_data / "label_formats/roboflow_dataset/yolo"
    report = convert("yolo", source, tmp_path / "refused")
    assert [failure.message.count("boxes") for failure in report.failures] == [1, 1, 1]
    report = convert("yolo", source, tmp_path / "painted", boxes=True, background="other")
    maps, names = label_maps(tmp_path / "painted")
    assert report.ok and names == ("other", "label_0", "label_1")
    # class 0, center 0.35 0.3, width 0.3, height 0.2 of 10x5 pixels: columns 2..4, row 1
    wanted = np.zeros((5, 10), int)
    wanted[1, 2:5] = 1
    np.testing.assert_array_equal(maps["train/train_001.png"], wanted)


# ---- by hand -----------------------------------------------------------------------------------


def test_label_studio_brush_runs_as_its_library_decodes_them(tmp_path):
    golden = GOLDEN["label_studio_brush"]
    height, width = golden["size"]
    wanted = decode_mask(golden["counts"], height, width)
    image_file(tmp_path / "7 a.png", height, width)
    brush = {"format": "rle", "rle": golden["rle"], "brushlabels": ["road"]}
    box = {"x": 0, "y": 0, "width": 50, "height": 20, "rectanglelabels": ["sky"]}
    size = {"original_height": height, "original_width": width}
    cancelled = {"was_cancelled": True, "result": []}
    results = [
        {"type": "brushlabels", "value": brush, **size},
        {"type": "rectanglelabels", "value": box, **size},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    task = {
        "id": 1,
        "data": {"image": "/data/local-files/?d=folder/7%20a.png"},
        "annotations": [{"was_cancelled": False, "result": results}, cancelled],
    }
    (tmp_path / "export.json").write_text(json.dumps([task]))
    labels, names = converted(tmp_path, "label-studio", tmp_path / "export.json")
    assert names == ("road", "sky")
    expected = np.where(wanted, 0, 255)
    expected[: height // 5, : width // 2] = 1
    np.testing.assert_array_equal(labels, expected)


def test_label_studio_tasks_that_cannot_be_used_are_named(tmp_path):
    image_file(tmp_path / "a.jpg")
    good = {
        "data": {"image": "a.jpg"},
        "annotations": [
            {
                "result": [
                    {
                        "type": "polygonlabels",
                        "original_height": HEIGHT,
                        "original_width": WIDTH,
                        "value": {
                            "points": [[0, 0], [50, 0], [50, 50], [0, 50]],
                            "polygonlabels": ["road"],
                        },
                    }
                ]
            }
        ],
    }
    remote = {**good, "data": {"image": "https://example.com/b.jpg?x=1"}}
    hostile = {**good, "data": {"image": "../../secret.jpg"}}
    empty = {**good, "annotations": []}
    (tmp_path / "export.json").write_text(json.dumps([good, remote, hostile, empty]))
    report = convert("label-studio", tmp_path / "export.json", tmp_path / "out")
    assert report.written == 1 and len(report.failures) == 3
    assert [failure.file for failure in report.failures] == [
        "https://example.com/b.jpg?x=1",
        "../../secret.jpg",
        "a.jpg",
    ]
    np.testing.assert_array_equal(
        label_maps(tmp_path / "out")[0]["a.png"][: HEIGHT // 2, : WIDTH // 2], 0
    )


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_brush_runs_that_break_off_are_refused(cut):
    data = bytes(GOLDEN["label_studio_brush"]["rle"])
    with pytest.raises(ValueError, match="brush mask"):
        decode_brush_runs(data[:cut], most=1 << 20)


def test_brush_runs_that_would_fill_the_memory_are_refused():
    with pytest.raises(ValueError, match="4294967295 values"):
        decode_brush_runs(b"\xff" * 40, most=4096)


def cvat_file(
    folder, shapes, meta="<label><name>road</name></label><label><name>sky</name></label>"
):
    image_file(folder / "a.png")
    text = (
        f"<annotations><meta><task><labels>{meta}</labels></task></meta>"
        f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
        "</annotations>"
    )
    (folder / "annotations.xml").write_text(text)
    return folder / "annotations.xml"


def test_cvat_shapes_in_their_order(tmp_path):
    shapes = (
        '<mask label="sky" rle="0,3,1,2" left="2" top="1" width="3" height="2" z_order="0"/>'
        '<box label="road" xtl="0" ytl="0" xbr="4" ybr="3" z_order="2"/>'
        '<polygon label="sky" points="0,0;8,0;8,8;0,8" z_order="1"/>'
        '<points label="sky" points="1,1"/>'
    )
    labels, names = converted(tmp_path, "cvat", cvat_file(tmp_path, shapes))
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[:8, :8] = 1
    expected[:3, :4] = 0
    assert names == ("road", "sky")
    np.testing.assert_array_equal(labels, expected)


def test_cvat_mask_runs_go_row_by_row_and_begin_outside(tmp_path):
    shapes = '<mask label="sky" rle="1,3,1,1" left="2" top="1" width="3" height="2"/>'
    labels, _ = converted(tmp_path, "cvat", cvat_file(tmp_path, shapes))
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[1, 3:5] = expected[2, 2] = expected[2, 4] = 1
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<mask label="sky" rle="1,3" left="2" top="1" width="3" height="2"/>', "cover 4 pixels"),
        (
            '<mask label="sky" rle="0,6" left="15" top="1" width="3" height="2"/>',
            "leaves the image",
        ),
        ('<polygon label="sky" points="1,1;2"/>', "cannot be drawn"),
        ('<polygon label="sky" points="1,1;2,2;inf,3"/>', "finite"),
        ('<polygon label="moon" points="1,1;2,2;3,3"/>', "'moon'"),
    ],
)
def test_cvat_shapes_that_cannot_be_drawn_are_named(tmp_path, text, told):
    options = {"classes": ["road", "sky"]}
    report = convert("cvat", cvat_file(tmp_path, text), tmp_path / "out", **options)
    assert told in report.failures[0].message


def test_cvat_declared_entities_are_refused(tmp_path):
    path = cvat_file(tmp_path, "")
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + path.read_text())
    with pytest.raises(DataError, match="document type"):
        convert("cvat", path, tmp_path / "out")


def test_supervisely_bitmaps_polygons_and_rectangles(tmp_path):
    project = tmp_path / "project"
    image_file(project / "train/img/a.jpg")
    (project / "train/ann").mkdir()
    classes = [{"title": name, "shape": "any"} for name in ("road", "sky", "car")]
    (project / "meta.json").write_text(json.dumps({"classes": classes}))
    inner = np.zeros((2, 3, 4), np.uint8)
    inner[0, :2] = 255
    png = cv2.imencode(".png", inner)[1].tobytes()
    packed = [base64.b64encode(zlib.compress(png)).decode(), base64.b64encode(png).decode()]
    ring = {"exterior": [[0, 0], [6, 0], [6, 6], [0, 6]]}
    hole = {"interior": [[[1, 1], [3, 1], [3, 3], [1, 3]]]}
    objects = [
        {"classTitle": "road", "geometryType": "polygon", "points": {**ring, **hole}},
        {
            "classTitle": "car",
            "geometryType": "rectangle",
            "points": {"exterior": [[8, 8], [9, 9]], "interior": []},
        },
        {
            "classTitle": "sky",
            "geometryType": "bitmap",
            "bitmap": {"data": packed[0], "origin": [4, 5]},
        },
        {
            "classTitle": "sky",
            "geometryType": "bitmap",
            "bitmap": {"data": packed[1], "origin": [10, 0]},
        },
        {"classTitle": "sky", "geometryType": "line", "points": {**ring}},
    ]
    annotation = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
    (project / "train/ann/a.jpg.json").write_text(json.dumps(annotation))
    report = convert("auto", project, tmp_path / "out")
    assert report.ok and "1 x line" in report.text()
    maps, names = label_maps(tmp_path / "out")
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[:6, :6] = 0
    expected[1:3, 1:3] = 255
    expected[8:10, 8:10] = 2
    expected[5, 4:6] = expected[0, 10:12] = 1
    assert names == ("road", "sky", "car")
    np.testing.assert_array_equal(maps["train/a.png"], expected)


def test_supervisely_bitmaps_that_unpack_to_gigabytes_are_refused(tmp_path):
    project = tmp_path / "project"
    image_file(project / "train/img/a.jpg")
    (project / "train/ann").mkdir()
    (project / "meta.json").write_text(json.dumps({"classes": [{"title": "road"}]}))
    bomb = base64.b64encode(zlib.compress(bytes(1 << 28))).decode()
    one = {
        "classTitle": "road",
        "geometryType": "bitmap",
        "bitmap": {"data": bomb, "origin": [0, 0]},
    }
    annotation = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": [one]}
    (project / "train/ann/a.jpg.json").write_text(json.dumps(annotation))
    report = convert("supervisely", project, tmp_path / "out")
    assert "not an image" in report.failures[0].message


@pytest.mark.parametrize("version", [1, 2])
def test_via_shapes_of_both_versions(tmp_path, version):
    image_file(tmp_path / "a.jpg")
    regions = [
        {
            "shape_attributes": {
                "name": "polygon",
                "all_points_x": [0, 8, 8, 0],
                "all_points_y": [0, 0, 4, 4],
            },
            "region_attributes": {"class": "road"},
        },
        {
            "shape_attributes": {"name": "rect", "x": 2, "y": 1, "width": 3, "height": 2},
            "region_attributes": {"class": {"sky": True, "road": False}},
        },
        {
            "shape_attributes": {"name": "circle", "cx": 12, "cy": 8, "r": 2},
            "region_attributes": {"class": "sky"},
        },
        {
            "shape_attributes": {"name": "point", "cx": 12, "cy": 8},
            "region_attributes": {"class": "sky"},
        },
    ]
    numbered = {str(k): each for k, each in enumerate(regions)}
    entry = {"filename": "a.jpg", "size": 1, "regions": regions if version == 2 else numbered}
    (tmp_path / "via.json").write_text(json.dumps({"a.jpg1": entry}))
    labels, names = converted(tmp_path, "auto", tmp_path / "via.json")
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[:4, :8] = 0
    expected[1:3, 2:5] = 1
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    expected[np.hypot(columns + 0.5 - 12, rows + 0.5 - 8) <= 2] = 1
    assert names == ("road", "sky")
    np.testing.assert_array_equal(labels, expected)


def test_via_with_two_attributes_asks_which_one(tmp_path):
    region = {
        "shape_attributes": {"name": "rect", "x": 0, "y": 0, "width": 3, "height": 2},
        "region_attributes": {"class": "road", "quality": "good"},
    }
    image_file(tmp_path / "a.jpg")
    content = {"_via_img_metadata": {"a": {"filename": "a.jpg", "regions": [region]}}}
    (tmp_path / "via.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="name it with attribute"):
        convert("via", tmp_path / "via.json", tmp_path / "out")
    labels, names = converted(tmp_path, "via", tmp_path / "via.json", attribute="class")
    assert names == ("road",) and (labels[:2, :3] == 0).all()


def test_yolo_polygons_smaller_ones_on_top(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "val"):
        image_file(root / f"images/{split}/a.jpg")
        (root / f"labels/{split}").mkdir(parents=True)
    lines = "1 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n0 0 0 1 0 1 1 0 1\n"
    (root / "labels/train/a.txt").write_text(lines)
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: road, 1: sky}\n"
    )
    report = convert("yolo", root, tmp_path / "out")
    assert len(report.failures) == 1 and "(background)" in report.failures[0].message
    maps, names = label_maps(tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[HEIGHT // 4 : HEIGHT // 2, WIDTH // 4 : WIDTH // 2] = 1
    assert names == ("road", "sky")
    np.testing.assert_array_equal(maps["train/a.png"], expected)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0 0 1 0 1 1", "class 2"),
        ("0 0 0 1 0 1", "5 numbers"),
        ("0 0 0 nan 0 1 1", "no fractions"),
        ("x 0 0 1 0 1 1", "invalid literal"),
    ],
)
def test_yolo_lines_that_are_no_polygons_are_named(tmp_path, line, told):
    root = tmp_path / "data"
    image_file(root / "images/a.jpg")
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text(line)
    (root / "data.yaml").write_text("train: images\nnames: [road, sky]\n")
    report = convert("yolo", root, tmp_path / "out")
    assert told in report.failures[0].message and "a.txt, line 1" in report.failures[0].message


def test_roboflow_masks_with_their_list_of_classes(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "valid"):
        image_file(root / split / "a_jpg.rf.0123.jpg")
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        values[:3] = 1
        cv2.imwrite(str(root / split / "a_jpg.rf.0123_mask.png"), values)
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, crack\n")
    report = convert("auto", root, tmp_path / "out")
    maps, names = label_maps(tmp_path / "out")
    assert report.ok and names == ("background", "crack")
    assert sorted(maps) == ["train/a_jpg.rf.0123.png", "val/a_jpg.rf.0123.png"]
    np.testing.assert_array_equal(maps["val/a_jpg.rf.0123.png"], values)


def test_kitti_ids_are_those_of_cityscapes(tmp_path):
    root = tmp_path / "data"
    image_file(root / "training/image_2/0.png")
    (root / "training/semantic").mkdir()
    values = np.full((HEIGHT, WIDTH), 7, np.uint8)
    values[0], values[1] = 33, 4
    cv2.imwrite(str(root / "training/semantic/0.png"), values)
    labels, names = converted(tmp_path, "auto", root)
    assert names[0] == "road" and names[18] == "bicycle"
    assert labels[0, 0] == 18 and labels[1, 0] == 255 and labels[2, 0] == 0


def test_coco_panoptic_ids_are_little_endian_colors(tmp_path):
    image_file(tmp_path / "images/a.jpg")
    (tmp_path / "panoptic").mkdir()
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[2:5] = (3, 2, 1)  # BGR: R 1, G 2, B 3
    cv2.imwrite(str(tmp_path / "panoptic/a.png"), mask)
    number = 1 + 256 * 2 + 65536 * 3
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 9, "name": "sky"}, {"id": 4, "name": "road"}],
        "annotations": [
            {
                "image_id": 5,
                "file_name": "a.png",
                "segments_info": [{"id": number, "category_id": 9}],
            }
        ],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    labels, names = converted(tmp_path, "auto", tmp_path / "panoptic.json")
    assert names == ("road", "sky")
    assert (labels[2:5] == 1).all() and (labels[:2] == 255).all()


def test_cvat_masks_in_color_with_their_color_table(tmp_path):
    root = tmp_path / "data"
    (root / "SegmentationClass").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("a\n")
    lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:128,0,0::\n"
    (root / "labelmap.txt").write_text(lines)
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[3:6] = (0, 0, 128)
    cv2.imwrite(str(root / "SegmentationClass/a.png"), mask)
    image_file(tmp_path / "photos/a.jpg")
    labels, names = converted(tmp_path, "auto", root, images=tmp_path / "photos")
    assert names == ("background", "crack")
    np.testing.assert_array_equal(labels, (mask[..., 2] > 0).astype(int))


def test_masks_changed_after_a_conversion_are_converted_again(tmp_path):
    test_kitti_ids_are_those_of_cityscapes(tmp_path)
    root, out = tmp_path / "data", tmp_path / "out"
    assert convert("kitti", root, out).kept == 1
    path = root / "training/semantic/0.png"
    cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), 8, np.uint8))
    report = convert("kitti", root, out)
    assert report.written == 1 and read_label(out / "annotations/0.png").max() == 1


@pytest.mark.parametrize("name", ["nothing", "two"])
def test_auto_names_what_it_cannot_tell(tmp_path, name):
    root = tmp_path / name
    root.mkdir()
    if name == "two":
        (root / "meta.json").write_text("{}")
        (root / "train/ann").mkdir(parents=True)
        (root / "training/semantic").mkdir(parents=True)
    with pytest.raises(DataError) as told:
        convert("auto", root, tmp_path / "out")
    found = "kitti (by training/semantic); supervisely" if name == "two" else "no known format"
    assert found in str(told.value)


def test_ellipses_turn_clockwise():
    upright = fill_ellipse((8, 6), (5, 2), 0, HEIGHT, WIDTH)
    assert upright[6, 4] and not upright[2, 8]
    turned = fill_ellipse((8, 6), (5, 2), 90, HEIGHT, WIDTH)
    assert turned[2, 8] and not turned[6, 4]
    slanted = fill_ellipse((8, 6), (5, 1), 45, HEIGHT, WIDTH)
    assert slanted[8, 10] and not slanted[3, 10]  # y points down: to the right and down


def test_the_check_of_a_folder_names_the_conversion_that_it_needs(tmp_path):
    test_supervisely_bitmaps_polygons_and_rectangles(tmp_path)
    with pytest.raises(DataError, match="cgrseg data convert supervisely") as told:
        guess_dataset(tmp_path / "project")
    assert "the format supervisely (by meta.json and */ann)" in str(told.value)
    cvat_file(tmp_path / "other", "")
    with pytest.raises(DataError, match=r"cgrseg data convert cvat .*other OUT"):
        guess_dataset(tmp_path / "other")


# ---- hostile and malformed files ---------------------------------------------------------------


def cvat_images(path, *images):
    """An XML file of images, each with its name, the label of a box, and further attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    elements = "".join(
        f'<image name="{name}" width="{WIDTH}" height="{HEIGHT}" {more}>'
        f'<box label="{label}" xtl="0" ytl="0" xbr="4" ybr="3"/></image>'
        for name, label, more in images
    )
    path.write_text(f"<annotations>{elements}</annotations>")
    return path


@pytest.mark.parametrize("subset", ["../secret", "{}/secret"])
def test_cvat_subsets_name_no_folder_outside(tmp_path, subset):
    image_file(tmp_path / "secret/a.png")
    more = f'subset="{subset.format(tmp_path)}"'
    source = cvat_images(tmp_path / "export/annotations.xml", ("a.png", "road", more))
    report = convert("cvat", source, tmp_path / "out")
    assert report.written == 0 and "no image 'a.png'" in report.failures[0].message
    assert not list((tmp_path / "out").rglob("a.png"))


def test_exact_paths_go_before_names_and_names_must_be_unique(tmp_path):
    image_file(tmp_path / "images/1.png", 5, 5)
    image_file(tmp_path / "cam2/1.png")
    source = cvat_images(tmp_path / "annotations.xml", ("cam2/1.png", "road", ""))
    report = convert("cvat", source, tmp_path / "out")
    assert report.ok and list(label_maps(tmp_path / "out")[0]) == ["cam2/1.png"]
    image_file(tmp_path / "1.png")
    source = cvat_images(tmp_path / "annotations.xml", ("cam3/1.png", "road", ""))
    report = convert("cvat", source, tmp_path / "other")
    assert "both may be it" in report.failures[0].message and report.written == 0


def test_yolo_images_of_one_name_in_two_folders_stay_apart(tmp_path):
    root = tmp_path / "data"
    for folder, index in (("cam1", 0), ("cam2", 1)):
        image_file(root / f"train/images/{folder}/1.png")
        labels = root / f"train/labels/{folder}"
        labels.mkdir(parents=True)
        (labels / "1.txt").write_text(f"{index} 0 0 1 0 1 1 0 1")
    (root / "data.yaml").write_text("train: train/images\nnames: [road, sky]\n")
    report = convert("yolo", root, tmp_path / "out")
    assert report.ok, report.text()
    maps, _ = label_maps(tmp_path / "out")
    assert {name: labels[0, 0] for name, labels in maps.items()} == {
        "train/cam1/1.png": 0,
        "train/cam2/1.png": 1,
    }


def test_label_studio_numbers_in_place_of_runs_allocate_nothing():
    with pytest.raises(ValueError, match="not a list"):
        LabelStudio.shape({"rle": 1 << 62}, HEIGHT, WIDTH)


def label_studio_task(image, name):
    value = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": [name]}
    size = {"original_height": HEIGHT, "original_width": WIDTH}
    result = {"type": "polygonlabels", "value": value, **size}
    return {"data": {"image": image}, "annotations": [{"result": [result]}]}


@pytest.mark.parametrize("kind", ["cvat", "label-studio", "geojson"])
def test_a_bad_class_name_skips_its_image_alone(tmp_path, kind):
    good, bad = "road", "sea\nsky"
    for name in ("a.png", "b.png"):
        image_file(tmp_path / name)
    if kind == "cvat":
        source = cvat_images(tmp_path / "x.xml", ("a.png", good, ""), ("b.png", "sea&#10;sky", ""))
    elif kind == "label-studio":
        source = tmp_path / "x.json"
        tasks = [label_studio_task("a.png", good), label_studio_task("b.png", bad)]
        source.write_text(json.dumps(tasks))
    else:
        source = tmp_path
        for stem, label in (("a", good), ("b", bad)):
            geometry = {"type": "Polygon", "coordinates": [[[0, 0], [5, 0], [5, 5], [0, 0]]]}
            feature = {"geometry": geometry, "properties": {"class": label}}
            (tmp_path / f"{stem}.geojson").write_text(json.dumps({"features": [feature]}))
    report = convert(kind, source, tmp_path / "out")
    assert report.written == 1 and len(report.failures) == 1
    assert list(label_maps(tmp_path / "out")[0]) == ["a.png"]


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("coco", "a.json", '{"images": [], "categories": [], "annotations": [1]}'),
        ("label-studio", "a.json", '[["data", "annotations"]]'),
        ("yolo", "data.yaml", "train: images\nnames: {0: a, x: b}"),
        ("yolo", "data.yaml", "train: images\nnames: 5"),
        (
            "mapillary",
            "config_v2.0.json",
            '{"labels": [{"color": [1, 2, 3], "evaluate": true}]}',
        ),
    ],
)
def test_malformed_files_are_data_errors(tmp_path, kind, name, text):
    (tmp_path / "training/v2.0/labels").mkdir(parents=True)
    path = tmp_path / name
    path.write_text(text)
    source = tmp_path if kind == "mapillary" else path
    arguments = [source, tmp_path] if kind == "coco" else [source]
    with pytest.raises(DataError):
        convert(kind, *arguments, tmp_path / "out")
    for source in (path, tmp_path):
        recognize(source)
    with pytest.raises(DataError):
        guess_dataset(tmp_path)


def test_codes_of_an_empty_class_list_are_named(tmp_path):
    root = tmp_path / "data"
    (root / "training/v2.0/labels").mkdir(parents=True)
    (root / "config_v2.0.json").write_text('{"labels": []}')
    image_file(root / "training/images/a.jpg")
    cv2.imwrite(str(root / "training/v2.0/labels/a.png"), np.ones((HEIGHT, WIDTH), np.uint8))
    report = convert("mapillary", root, tmp_path / "out", classes=["road"])
    assert "pixels of no class: 1" in report.failures[0].message


def test_recognition_keeps_no_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([label_studio_task("a.png", "road")]))
    assert list(recognize(path)) == ["label-studio"]
    assert peek_json.cache_info().currsize == 0
    path.write_text("[]")
    assert recognize(path) == {}
