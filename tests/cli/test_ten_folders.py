"""Ten folders as people have them: from nothing to a trained network by what is printed alone.

Each journey begins with `cgrseg data check`.  Every later step is one that the output before it
proposes: the text that it follows must stand there.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.data import folders

SMALL = (
    "--device cpu model.context_blocks=1 train.precision=fp32 schedule.max_iters=4 "
    "schedule.warmup_iters=0 optimizer.lr=1e-3 train.eval_interval=4 train.batch_size=2 "
    "train.log_interval=2 data.workers=0 augment.scale=[64,64] augment.crop_size=[32,32] "
    "test.scale=[64,64]"
)
"""Added to each training, so that it is over soon."""


def color_masks(root: Path) -> Path:
    """RGB masks in the folder for labels."""
    folders.write_folder(root)
    for path in (root / "annotations").iterdir():
        ids = np.asarray(Image.open(path))
        colors = np.array([[0, 0, 0], [128, 64, 128]], np.uint8)
        Image.fromarray(colors[ids]).save(path)
    return root


def labelme(root: Path) -> Path:
    """LabelMe files beside their images."""
    for number in range(4):
        folders.save_image(root / "images" / f"{number}.jpg", number)
        shape = {"label": "road", "shape_type": "rectangle", "points": [[0, 20], [63, 47]]}
        text = json.dumps(
            {
                "shapes": [shape],
                "imagePath": f"{number}.jpg",
                "imageHeight": folders.SIZE[0],
                "imageWidth": folders.SIZE[1],
                "imageData": None,
            }
        )
        (root / "images" / f"{number}.json").write_text(text)
    return root


def cvat(root: Path) -> Path:
    """What CVAT exports as "Segmentation mask"."""
    folders.write_folder(root, images="JPEGImages", annotations="SegmentationClass", classes=None)
    colors = np.array([[0, 0, 0], [250, 50, 83]], np.uint8)
    for path in (root / "SegmentationClass").iterdir():
        Image.fromarray(colors[np.asarray(Image.open(path))]).save(path)
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nparking place:250,50,83::\n"
    )
    return root


def one_bit_by_split(root: Path) -> Path:
    """train/images with 1-bit masks in train/masks, valid likewise, and no class list."""
    for split in ("train", "valid"):
        folders.write_folder(
            root,
            images=f"{split}/images",
            annotations=f"{split}/masks",
            stems=[f"{split}{k}" for k in range(4)],
            make=lambda k: folders.labels(k) == 1,
            classes=None,
        )
    return root


def jpeg_masks(root: Path) -> Path:
    return folders.other_format(root, "jpg")


def write_text(path: str, text: str) -> Callable[[], str]:
    """A step at the keyboard: a text file is written."""

    def act() -> str:
        Path(path).write_text(text)
        return f"printf '{text.encode('unicode_escape').decode()}' > {path}"

    return act


@dataclass(frozen=True)
class Step:
    """What is typed, and the words of the output before it that propose it."""

    follows: str
    typed: str | Callable[[], str]


@dataclass(frozen=True)
class Journey:
    make: Callable[[Path], Path]
    steps: list[Step] = field(default_factory=list)


CHECK = "cgrseg data check mine"
JOURNEYS = {
    "masks of 0 and 255": Journey(
        folders.binary,
        [Step("set data.label_threshold=128", f"{CHECK} data.label_threshold=128")],
    ),
    "masks of 0 and 1, the object alone is named": Journey(
        folders.foreground_only,
        [
            Step(
                "write background as the first line of mine/classes.txt",
                write_text("mine/classes.txt", "background\ncrack\n"),
            ),
            Step("", CHECK),
        ],
    ),
    "JPEG masks": Journey(
        jpeg_masks,
        [Step("read with data.label_threshold=128", f"{CHECK} data.label_threshold=128")],
    ),
    "labels in a deeper folder": Journey(
        folders.deeper,
        [Step("set data.labels=annotations/masks", f"{CHECK} data.labels=annotations/masks")],
    ),
    "Pascal's folders without lists": Journey(folders.pascal),
    "CVAT's masks": Journey(
        cvat,
        [
            Step(
                "cgrseg data convert rgb mine/JPEGImages mine/SegmentationClass OUT --colors "
                "mine/labelmap.txt",
                "cgrseg data convert rgb mine/JPEGImages mine/SegmentationClass out --colors "
                "mine/labelmap.txt",
            ),
            Step("in out", "cgrseg data check out"),
        ],
    ),
    "a training split alone": Journey(
        lambda root: folders.splits(root, "train"),
        [
            Step(
                "data.images=images/train data.labels=annotations/train",
                f"{CHECK} data.images=images/train data.labels=annotations/train",
            )
        ],
    ),
    "labels called 0_mask.png": Journey(
        folders.masks_with_addition,
        [Step("data.label_name={stem}_mask", f"{CHECK} data.label_name={{stem}}_mask")],
    ),
    "gray values 0, 128 and 255": Journey(
        folders.gray_values,
        [
            Step(
                "'data.label_values={0:0,128:1,255:2}'",
                f"{CHECK} 'data.label_values={{0:0,128:1,255:2}}'",
            )
        ],
    ),
    "1-bit masks below train and valid, no class list": Journey(
        one_bit_by_split,
        [
            Step(
                "write the class names into mine/classes.txt, one a line",
                write_text("mine/classes.txt", "background\nroad\n"),
            ),
            Step("", CHECK),
        ],
    ),
    "color masks": Journey(
        color_masks,
        [
            Step(
                "cgrseg data convert rgb IMAGES MASKS OUT",
                "cgrseg data convert rgb mine/images mine/annotations out",
            ),
            Step(
                "write a text file of lines such as 'road 128 64 128'",
                write_text("colors.txt", "other 0 0 0\nroad 128 64 128\n"),
            ),
            Step(
                "give it with --colors",
                "cgrseg data convert rgb mine/images mine/annotations out --colors colors.txt",
            ),
            Step("in out", "cgrseg data check out"),
        ],
    ),
    "LabelMe files beside their images": Journey(
        labelme,
        [
            Step(
                "cgrseg data convert labelme mine/images OUT",
                "cgrseg data convert labelme mine/images out",
            ),
            Step("in out", "cgrseg data check out"),
            Step(
                "into another folder with `cgrseg data convert labelme --background other`",
                "cgrseg data convert labelme mine/images out2 --background other",
            ),
            Step("in out2", "cgrseg data check out2"),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOURNEYS)
def test_from_a_folder_to_a_network(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    journey = JOURNEYS[name]
    journey.make(Path("mine"))
    transcript, printed = [f"=== {name}"], ""
    for step in [Step("", CHECK), *journey.steps]:
        assert step.follows in printed, f"{step.follows!r} is not proposed by:\n{printed}"
        if callable(step.typed):
            transcript.append(f"$ {step.typed()}")
            continue
        printed = typed(run, step.typed, transcript)
    [train] = [line for line in printed.splitlines() if line.startswith("to train: ")]
    printed = typed(run, f"{train.removeprefix('to train: ')} {SMALL}", transcript)
    Path("transcript.txt").write_text("\n".join(transcript) + "\n")
    assert "evaluation at 4: mIoU" in printed
    assert "warning" not in printed.replace("fewer", "")
    assert len(list(Path("work_dirs").glob("*/best.pth"))) == 1


def typed(run: Run, line: str, transcript: list[str]) -> str:
    """Run a line, and write down what it printed."""
    program, *arguments = shlex.split(line)
    assert program == "cgrseg"
    result = run(*arguments)
    transcript.append(f"$ {line.removesuffix(' ' + SMALL)}{' SMALL' * line.endswith(SMALL)}")
    transcript.append(result.output.rstrip())
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output
