"""Conversions as people start them: `cgrseg data convert` and `tools/convert_datasets`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from cgrseg.cli.data import data as app
from cgrseg.config.schema import Config
from cgrseg.data.dataset import EvalDataset, TrainDataset
from cgrseg.data.image_files import read_image, write_image
from cgrseg.data.label_files import read_label
from cgrseg.datasets import get_spec

CLASSES = ("road", "tree", "sky")
COLOURS = np.array([(128, 64, 128), (0, 128, 0), (70, 130, 180)], np.uint8)


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, list(map(str, arguments)))


@pytest.fixture
def street(shared_data):
    """Six real street scenes, reduced to three classes; the truth to compare with."""
    folder = shared_data / "camvid"
    spec = get_spec("camvid")
    ids = np.full(256, 255, np.uint8)
    for new, name in enumerate(CLASSES):
        ids[spec.classes.index(name)] = new
    scenes = {}
    for path in sorted((folder / "images" / "train").glob("*.jpg"))[::64][:6]:
        label = ids[read_label(folder / "annotations" / "train" / f"{path.stem}.png")]
        scenes[path.stem] = (read_image(path)[::4, ::4], np.ascontiguousarray(label[::4, ::4]))
    return scenes


def write_photos(folder, street):
    for stem, (image, _) in street.items():
        write_image(folder / f"{stem}.png", image)
    return folder


def check_and_load(root, street):
    """The dataset is clean, and loaders give exactly the truth."""
    checked = run("check", root, "--json")
    report = json.loads(checked.stdout)
    assert checked.exit_code == 0, checked.stdout
    assert report["dataset"] == "custom"
    assert report["classes"] == list(CLASSES)
    assert report["counts"]["error"] == 0
    config = Config.model_validate(
        {
            "data": {"dataset": "custom", "root": str(root)},
            "augment": {"scale": [120, 90], "crop_size": [64, 64]},
        }
    )
    train, val = TrainDataset.from_config(config), EvalDataset.from_config(config)
    assert len(train) + len(val) == 6
    assert len(val) >= 1
    sample = train[0, 0]
    assert sample["image"].shape == (3, 64, 64)
    assert set(np.unique(sample["label"])) <= {0, 1, 2, 255}
    for pair in [*train.pairs, *val.pairs]:
        assert pair.label is not None
        assert np.array_equal(read_label(pair.label), street[pair.stem][1])
        assert np.array_equal(read_image(pair.image), street[pair.stem][0])


def test_a_custom_folder_from_id_labels(street, tmp_path):
    write_photos(tmp_path / "mine" / "images", street)
    for stem, (_, label) in street.items():
        write_image(tmp_path / "mine" / "annotations" / f"{stem}.png", np.dstack([label] * 3))
    (tmp_path / "mine" / "classes.txt").write_text("\n".join(CLASSES))
    # Three equal channels are gray, saved as color: the same ids.
    check_and_load(tmp_path / "mine", street)
    from PIL import Image

    for stem, (_, label) in street.items():
        Image.fromarray(label).save(tmp_path / "mine" / "annotations" / f"{stem}.png")
    check_and_load(tmp_path / "mine", street)


def test_a_custom_folder_from_colour_masks(street, tmp_path):
    photos = write_photos(tmp_path / "photos", street)
    for stem, (_, label) in street.items():
        table = np.vstack([COLOURS, np.zeros((253, 3), np.uint8)])
        write_image(tmp_path / "masks" / f"{stem}.png", table[label])
    out = tmp_path / "mine"
    asked = run("convert", "rgb", photos, tmp_path / "masks", out)
    assert asked.exit_code == 2
    assert "128 64 128" in asked.stderr
    lines = [
        f"{name} {r} {g} {b}" for name, (r, g, b) in zip(CLASSES, COLOURS.tolist(), strict=True)
    ]
    (tmp_path / "colours.txt").write_text("\n".join([*lines, "void 0 0 0"]))
    options = ["--colors", tmp_path / "colours.txt", "--ignore", "void"]
    done = run("convert", "rgb", photos, tmp_path / "masks", out, *options)
    assert done.exit_code == 0, done.output
    assert "6 label maps written" in done.stdout
    check_and_load(out, street)


def rectangles(label):
    """Every horizontal run of a class as a LabelMe rectangle: the label map, exactly."""
    for row, line in enumerate(label):
        borders = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist(), len(line)]
        for start, end in itertools.pairwise(borders):
            if line[start] != 255:
                yield CLASSES[line[start]], [[start, row], [end, row + 1]]


def test_a_custom_folder_from_labelme_files(street, tmp_path):
    folder = write_photos(tmp_path / "annotated", street)
    for stem, (_, label) in street.items():
        content = {
            "shapes": [
                {"label": name, "points": points, "shape_type": "rectangle"}
                for name, points in rectangles(label)
            ],
            "imagePath": f"{stem}.png",
            "imageHeight": label.shape[0],
            "imageWidth": label.shape[1],
        }
        (folder / f"{stem}.json").write_text(json.dumps(content))
    out = tmp_path / "mine"
    done = run("convert", "labelme", folder, out, "--classes", ",".join(CLASSES), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == 6
    check_and_load(out, street)


def test_a_skipped_file_shows_in_the_exit_status(street, tmp_path):
    folder = tmp_path / "annotated"
    write_photos(folder, dict(list(street.items())[:1]))
    (folder / "broken.json").write_text("{")
    done = run("convert", "labelme", folder, tmp_path / "mine", "--classes", "road")
    assert done.exit_code == 1
    assert "broken.json" in done.stdout


def script(repository, name, *arguments):
    return subprocess.run(
        [
            sys.executable,
            str(repository / "tools" / "convert_datasets" / name),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def test_the_scripts_convert_the_published_datasets(repository, shared_data, tmp_path):
    pytest.importorskip("scipy", reason="MATLAB files need the extra 'convert'")
    coco = shared_data / "cocostuff10k_samples"
    made = script(repository, "coco_stuff10k.py", coco, "-o", tmp_path / "coco", "--images", "copy")
    assert (made.returncode, made.stderr) == (0, "")
    assert "21 label maps written" in made.stdout
    (tmp_path / "VOCdevkit" / "VOC2010").mkdir(parents=True)
    pascal = shared_data / "pascal_context_samples"
    source = pascal / "trainval_merged.json"
    made = script(repository, "pascal_context.py", tmp_path / "VOCdevkit", source, "--nproc", 1)
    assert (made.returncode, made.stderr) == (0, "")
    assert len(list((tmp_path / "VOCdevkit/VOC2010/SegmentationClassContext").glob("*.png"))) == 103


def test_a_script_repeats_flags_and_reads_a_class_list(repository, tmp_path):
    for folder in ("photos", "masks"):
        write_image(tmp_path / folder / "a.png", np.full((2, 3, 3), 9, np.uint8))
    (tmp_path / "colors.txt").write_text("road 9 9 9\nblur 1 1 1\nvoid 2 2 2\n")
    folders = tmp_path / "photos", tmp_path / "masks", tmp_path / "out"
    flags = "--colors", tmp_path / "colors.txt", "--ignore", "blur", "--ignore", "void"
    assert script(repository, "rgb_masks.py", *folders, *flags).returncode == 0
    assert (tmp_path / "out" / "classes.txt").read_text() == "road\n"
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    shape = {"label": "road", "points": [[0, 0], [3, 0], [3, 2], [0, 2]]}
    data = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 2, "imageWidth": 3}
    (tmp_path / "photos" / "a.json").write_text(json.dumps(data))
    names = "--classes", tmp_path / "names.txt"
    made = script(repository, "labelme.py", tmp_path / "photos", tmp_path / "mine", *names)
    assert made.returncode == 0
    assert read_label(tmp_path / "mine" / "annotations" / "a.png").tolist() == [[1] * 3] * 2


@pytest.mark.parametrize(
    "name",
    ["coco_stuff10k.py", "pascal_context.py", "labelme.py", "coco_instances.py", "rgb_masks.py"],
)
def test_the_scripts_explain_what_they_miss(repository, tmp_path, name):
    nowhere = [tmp_path / "nowhere"] * (1 if name == "coco_stuff10k.py" else 2)
    if name in ("labelme.py", "coco_instances.py", "rgb_masks.py"):
        nowhere = [tmp_path / "nowhere"] * (2 if name == "labelme.py" else 3)
    made = script(repository, name, *nowhere)
    assert made.returncode == 2
    assert made.stderr.startswith("error: ")
    assert "what to do" in made.stderr
    assert "Traceback" not in made.stderr


MADE_UP = """
@dataclass
class Grid(CustomFormat):
    \"\"\"Text files with one digit per pixel.

    Example:
      cgrseg data convert grid images grids data/mine --zero sky
    \"\"\"

    name = "grid"
    images: ImageFolder
    grids: Annotated[Path, Argument("Folder of the text files.")]
    out: OutFolder
    _: KW_ONLY
    zero: Annotated[str, Option("Name of the class 0.")] = "background"

    def read(self) -> Annotations:
        table = self.settle_classes([self.zero, "one"])
        files = [(path.stem, path) for path in sorted(self.grids.glob("*.txt"))]
        pairs = self.pairs(self.images, self.grids, files, None, what="grid")
        return self.shape_annotations(table, pairs)

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        lines = task.source.read_text().split()
        return np.array([[int(digit) for digit in line] for line in lines], np.uint8)
"""


def test_a_format_is_one_module(tmp_path, monkeypatch):
    """A module in the folder of the formats is a command, with all that conversions promise."""
    from cgrseg.cli import data_convert
    from cgrseg.data.convert import formats

    imports = (
        "from __future__ import annotations\n"
        "from dataclasses import KW_ONLY, dataclass\n"
        "from pathlib import Path\n"
        "from typing import Annotated\n"
        "import numpy as np\n"
        "from cgrseg.data.convert.custom_format import CustomFormat, ImageFolder, OutFolder\n"
        "from cgrseg.data.convert.format import Annotations, Argument, Option, Task\n"
    )
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "grid.py").write_text(imports + MADE_UP)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "modules")])
    formats.formats.cache_clear()
    data_convert._commands.cache_clear()
    try:
        write_image(tmp_path / "photos" / "a.png", np.zeros((2, 3, 3), np.uint8))
        write_image(tmp_path / "photos" / "b.png", np.zeros((2, 3, 3), np.uint8))
        (tmp_path / "grids").mkdir()
        (tmp_path / "grids" / "a.txt").write_text("010\n011\n")
        folders = [tmp_path / "photos", tmp_path / "grids", "--out", tmp_path / "out"]
        shown = run("convert", "grid", "--help").stdout
        assert "Text files with one digit per pixel" in shown and "Name of the class 0" in shown
        done = run("convert", "grid", *folders, "--zero", "sky", "--json")
        assert done.exit_code == 1
        report = json.loads(done.stdout)
        assert (report["converter"], report["written"]) == ("grid", 1)
        assert "b.png: no grid of this name" in report["failed"][0]["message"]
        assert read_label(tmp_path / "out" / "annotations" / "a.png").tolist() == [
            [0, 1, 0],
            [0, 1, 1],
        ]
        assert (tmp_path / "out" / "classes.txt").read_text() == "sky\none\n"
        assert run("convert", "grid", *folders, "--zero", "sea").exit_code == 2
    finally:
        formats.formats.cache_clear()
        data_convert._commands.cache_clear()


def test_the_old_name_of_the_color_table_works_with_a_warning(tmp_path, caplog):
    from cgrseg.data.convert import convert_rgb_masks

    for folder in ("photos", "masks"):
        write_image(tmp_path / folder / "a.png", np.full((2, 3, 3), 9, np.uint8))
    folders = tmp_path / "photos", tmp_path / "masks", tmp_path / "out"
    assert convert_rgb_masks(*folders, colours={(9, 9, 9): "road"}).written == 1
    assert "'colours' is now called 'colors'" in caplog.text
