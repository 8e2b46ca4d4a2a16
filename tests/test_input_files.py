"""Only regular files are opened; everything else is named, with the reason, by every reader."""

from __future__ import annotations

import ast
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgrseg.class_names import read_lines
from cgrseg.config import load_config
from cgrseg.data.convert import convert_coco_instances
from cgrseg.data.convert.color_masks import read_color_table
from cgrseg.data.convert.formats.huggingface import HuggingFace
from cgrseg.data.convert.formats.labelme import read_labelme
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.image_files import is_jpeg, read_image, write_image
from cgrseg.data.label_files import read_label
from cgrseg.errors import CGRSegError, DataError
from cgrseg.evaluation.result import read_counts
from cgrseg.inference.exported_backend import open_exported
from cgrseg.inference.image_sources import find_images
from cgrseg.inference.video import VideoReader
from cgrseg.input_files import open_input, read_input, read_input_text
from cgrseg.models.checkpoint_files import read_checkpoint
from cgrseg.reporting.records import read_evaluation
from cgrseg.training.checkpointing import read_training_checkpoint

PACKAGE = Path(__file__).parents[1] / "cgrseg"

SPECIAL = {
    "fifo": ("a named pipe", os.mkfifo),
    "device": ("a device", lambda path: path.symlink_to("/dev/zero")),
    "loop": ("leads back to itself", lambda path: path.symlink_to(path.name)),
    "dangling": ("does not exist", lambda path: path.symlink_to("nowhere")),
    "socket": ("a socket", lambda path: _bind(path)),
    "folder": ("a folder", Path.mkdir),
}


def read_classes(path: Path) -> list[str]:
    return read_lines(path, what="the class list", expected="names", remedy="none")


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "image": ("a.jpg", read_image),
    "label": ("a.png", read_label),
    "checkpoint": ("a.pth", read_checkpoint),
    "safetensors": ("a.safetensors", read_checkpoint),
    "resumed checkpoint": ("latest.pth", read_training_checkpoint),
    "config": ("a.json", load_config),
    "config in Python": ("a.py", load_config),
    "class list": ("classes.txt", read_classes),
    "color table": ("colors.txt", read_color_table),
    "COCO": ("a.json", lambda path: convert_coco_instances(path, path.parent, path.parent / "o")),
    "LabelMe": ("a.json", read_labelme),
    "parquet": ("a.parquet", lambda p: run_conversion(HuggingFace(p, p.parent / "o"))),
    "video": ("a.mp4", VideoReader),
    "ONNX": ("a.onnx", open_exported),
    "OpenVINO": ("a.xml", open_exported),
    "program": ("a.pt2", open_exported),
    "evaluation": ("e.json", read_evaluation),
    "counts": ("counts.npz", read_counts),
}


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_reason_is_in_words(tmp_path: Path, kind: str) -> None:
    reason, make = SPECIAL[kind]
    path = tmp_path / "a"
    make(path)
    with pytest.raises(OSError) as caught:
        open_input(path)
    assert reason in (caught.value.strerror or "")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "folder"])
def test_every_reader_names_a_special_file(tmp_path: Path, reader: str, kind: str) -> None:
    name, read = READERS[reader]
    _, make = SPECIAL[kind]
    path = tmp_path / name
    make(path)
    with pytest.raises(CGRSegError, match=name):
        read(path)


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\r\ntwo\r")
    (tmp_path / "b").symlink_to("a")
    assert read_input(tmp_path / "b") == b"one\r\ntwo\r"
    assert read_input_text(tmp_path / "b") == "one\ntwo\n"


def test_a_fifo_is_no_jpeg(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert not is_jpeg(tmp_path / "a.jpg")


def test_special_files_stay_in_the_list_of_images(tmp_path: Path) -> None:
    """Left out, they would be missed by nobody; their reader names them."""
    write_image(tmp_path / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    for name, (_, make) in SPECIAL.items():
        if name != "folder":
            make(tmp_path / f"{name}.jpg")
    names = ["a", "dangling", "device", "fifo", "loop", "socket"]
    assert [image.name for image in find_images(tmp_path)] == names
    assert [image.name for image in find_images(tmp_path / "*.jpg")] == names
    assert [image.name for image in find_images(tmp_path / "loop.jpg")] == ["loop"]


def test_a_pattern_finds_files_behind_a_loop_once(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "deeper"
    folder.mkdir(parents=True)
    write_image(folder / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    (folder / "back").symlink_to(tmp_path / "images")
    found = find_images(tmp_path / "images" / "**" / "*.jpg")
    assert [image.path for image in found] == [folder / "a.jpg"]


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(name: str) -> None:
    with pytest.raises(DataError, match="empty name"):
        find_images([name])


# Files that are not inputs: of the system, of this package, of this process.
OWN = {
    "input_files.py",
    "surroundings.py",  # what the system says of its memory, in /proc and /sys
    "cpus.py",  # quotas of control groups
    "precision.py",  # instructions of the processor, in /proc
    "bench/machine.py",
    "bench/subject_process.py",
    "inference/compiled_cache.py",
    "deploy/staging.py",
}


def _other_opening(tree: ast.AST) -> Iterator[int]:
    """Lines that read files in another way than through `cgrseg.input_files`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        values = [a.value for a in node.args if isinstance(a, ast.Constant)]
        writes = any(isinstance(v, str) and set(v) & set("awx+") for v in values[:2])
        builtin = isinstance(node.func, ast.Name) and not writes
        is_open = name == "open" and (builtin or values[:1] == ["rb"])
        if is_open or name in ("read_text", "read_bytes", "imread", "fromfile", "loadtxt"):
            yield node.lineno


def test_nobody_opens_inputs_in_another_way() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in OWN or name.startswith("deploy/web/"):
            continue
        found += [f"{name}:{line}" for line in _other_opening(ast.parse(path.read_text("utf-8")))]
    assert found == []
