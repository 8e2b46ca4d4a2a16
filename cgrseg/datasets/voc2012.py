"""PASCAL VOC 2012 segmentation (Everingham et al.): 20 objects and the background.

Names and colors are those of the development kit; 255 marks object borders.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import Archive, DatasetSpec, Download, SplitLayout, class_table

CLASSES, PALETTE = class_table("""
    background 000000, aeroplane 800000, bicycle 008000, bird 808000, boat 000080, bottle 800080,
    bus 008080, car 808080, cat 400000, chair c00000, cow 408000, diningtable c08000, dog 400080,
    horse c00080, motorbike 408080, person c08080, pottedplant 004000, sheep 804000, sofa 00c000,
    train 80c000, tvmonitor 004080
""")
"""Class k is stored as k."""


def _split(name: str) -> SplitLayout:
    return SplitLayout(
        images="JPEGImages",
        labels="SegmentationClass",
        list_file=f"ImageSets/Segmentation/{name}.txt",
    )


SPEC = DatasetSpec(
    name="voc2012",
    title="PASCAL VOC 2012 (21 classes)",
    classes=CLASSES,
    palette=PALETTE,
    label_rule=LabelRule.identity(len(CLASSES)),
    splits={"train": _split("train"), "val": _split("val"), "trainval": _split("trainval")},
    default_root="data/VOCdevkit/VOC2012",
    download=Download(
        archives=(
            Archive(
                "VOCtrainval_11-May-2012.tar",
                (
                    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                    "http://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
                ),
                parts={"VOCdevkit/VOC2012": ""},
                size=2_000_000_000,
                digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
                digest_from="torchvision",
            ),
        ),
        terms="images: terms of use of Flickr",
        terms_page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/#rights",
    ),
    image_suffixes=(".jpg", ".jpeg"),
    notes="Labels are palette PNGs; their indices are the ids.",
    order=80,
)
