"""Pascal Context (Mottaghi et al., CVPR 2014): 59 classes, or 60 with the background.

The two share their files.  With 60 classes raw 0 is learned as "background"; with 59,
the form of the published numbers, it is ignored and every other id moves down by one.
Names, order and colors are those of mmsegmentation and the Detail toolkit.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import (
    Archive,
    DatasetSpec,
    Download,
    Recipe,
    SplitLayout,
    class_table,
)

CLASSES, PALETTE = class_table("""
    background 787878, aeroplane b47878, bag 06e6e6, bed 503232, bedclothes 04c803, bench 787850,
    bicycle 8c8c8c, bird cc05ff, boat e6e6e6, book 04fa07, bottle e005ff, building ebff07,
    bus 96053d, cabinet 787846, car 08ff33, cat ff0652, ceiling 8fff8c, chair ccff04,
    cloth ff3307, computer cc4603, cow 0066c8, cup 3de6fa, curtain ff0633, dog 0b66ff,
    door ff0747, fence ff09e0, floor 0907e6, flower dcdcdc, food ff095c, grass 7009ff,
    ground 08ffd6, horse 07ffe0, keyboard ffb806, light 0aff47, motorbike ff290a, mountain 07ffff,
    mouse e0ff08, person 6608ff, plate ff3d06, platform ffc207, pottedplant ff7a08, road 00ff14,
    rock ff0829, sheep ff0599, shelves 0633ff, sidewalk eb0cff, sign a09614, sky 00a3ff,
    snow 8c8c8c, sofa fa0a0f, table 14ff00, track 1fff00, train ff1f00, tree ffe000, truck 99ff00,
    tvmonitor 0000ff, wall ff4700, water 00ebff, window 00adff, wood 1f00ff
""")
"""Class k is stored as k."""


def _split(name: str) -> SplitLayout:
    return SplitLayout(
        images="JPEGImages",
        labels="SegmentationClassContext",
        list_file=f"ImageSets/SegmentationContext/{name}.txt",
    )


_SPLITS = {"train": _split("train"), "val": _split("val"), "test": _split("val")}
_ROOT = "data/VOCdevkit/VOC2010"
_DOWNLOAD = Download(
    archives=(
        Archive(
            "VOCtrainval_03-May-2010.tar",
            ("http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",),
            parts={"VOCdevkit/VOC2010": ""},
            size=1_350_000_000,
            digest="md5:da459979d0c395079b5c75ee67908abb",
            digest_from="torchvision",
        ),
        # The snapshot of the Internet Archive holds the same file: its digest decides.
        Archive(
            "trainval_merged.json",
            (
                "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
                "https://web.archive.org/web/2022id_/"
                "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
            ),
            parts={"trainval_merged.json": "trainval_merged.json"},
            digest="sha1:169325d9f7e9047537fedca7b04de4dddf10b881",
            digest_from="the preparation script of Segmenter",
            raw=True,
        ),
    ),
    terms="images: terms of use of Flickr; annotations: none are stated",
    terms_page="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/#rights",
    converter="pascal-context",
    converter_source="trainval_merged.json",
)

SPEC_59 = DatasetSpec(
    name="pascal_context59",
    title="Pascal Context (59 classes)",
    classes=CLASSES[1:],
    palette=PALETTE[1:],
    label_rule=LabelRule.reduce_zero(len(CLASSES) - 1),
    splits=_SPLITS,
    default_root=_ROOT,
    download=_DOWNLOAD,
    image_suffixes=(".jpg", ".jpeg"),
    notes="Raw 0 (background) is ignored.",
    order=40,
    recipe=Recipe(
        "pascal-context59_80k",
        "Pascal Context, 59 classes; 80,000 iterations are our choice, none were published.",
        {
            "augment": {"scale": [520, 520], "crop_size": [480, 480]},
            "test": {
                "scale": [520, 520],
                "resize": "keep_ratio_divisible",
                "crop_size": [480, 480],
                "stride": [320, 320],
            },
            "schedule": {"max_iters": 80_000},
        },
    ),
    known_by_class_count=True,
)

SPEC_60 = DatasetSpec(
    name="pascal_context60",
    title="Pascal Context (59 classes and background)",
    classes=CLASSES,
    palette=PALETTE,
    label_rule=LabelRule.identity(len(CLASSES)),
    splits=_SPLITS,
    default_root=_ROOT,
    download=_DOWNLOAD,
    image_suffixes=(".jpg", ".jpeg"),
    notes="Raw 0 (background) is a class.",
    order=50,
    shares_folders_of="pascal_context59",
)
