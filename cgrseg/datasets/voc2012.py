"""PASCAL VOC 2012 segmentation (Everingham et al.): 20 objects and the background.

Names and colors are those of the development kit; 255 marks object borders.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import Color, DatasetSpec, SplitLayout

CLASSES: tuple[tuple[str, Color], ...] = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)
"""Name, RGB; row k is stored as k."""


def _split(name: str) -> SplitLayout:
    return SplitLayout(
        images="JPEGImages",
        labels="SegmentationClass",
        list_file=f"ImageSets/Segmentation/{name}.txt",
    )


SPEC = DatasetSpec(
    name="voc2012",
    title="PASCAL VOC 2012 (21 classes)",
    classes=tuple(name for name, _ in CLASSES),
    palette=tuple(color for _, color in CLASSES),
    label_rule=LabelRule.identity(len(CLASSES)),
    splits={"train": _split("train"), "val": _split("val"), "trainval": _split("trainval")},
    default_root="data/VOCdevkit/VOC2012",
    how_to_get=(
        "fetch VOCtrainval_11-May-2012.tar (2 GB) from "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and unpack it into data, so that "
        "data/VOCdevkit/VOC2012/SegmentationClass exists"
    ),
    image_suffixes=(".jpg", ".jpeg"),
    notes="Labels are palette PNGs; their indices are the ids.",
    order=80,
)
