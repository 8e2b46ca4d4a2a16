"""Cityscapes (Cordts et al., CVPR 2016): 19 classes of street scenes.

Both forms of its labels are read: `_gtFine_labelTrainIds.png`, made by the dataset's own
scripts, and the raw `_gtFine_labelIds.png` of the download.  Ids, names and colors are
those of `cityscapesscripts/helpers/labels.py`.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import Hint, LabelRule
from cgrseg.datasets.spec import Archive, DatasetSpec, Download, SplitLayout, class_table

CLASSES, PALETTE = class_table("""
    road 804080, sidewalk f423e8, building 464646, wall 66669c, fence be9999, pole 999999,
    traffic light faaa1e, traffic sign dcdc00, vegetation 6b8e23, terrain 98fb98, sky 4682b4,
    person dc143c, rider ff0000, car 00008e, truck 000046, bus 003c64, train 005064,
    motorcycle 0000e6, bicycle 770b20
""")
"""Class k is stored as k in the prepared labels."""

RAW_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_RULE_PREPARED = LabelRule.identity(
    len(CLASSES),
    hints=(
        Hint(
            frozenset(range(len(CLASSES), 34)),
            "these are raw Cityscapes ids (0..33): such files end in _gtFine_labelIds.png; rename "
            "them, or make training ids with the dataset's createTrainIdLabelImgs script",
        ),
    ),
)

_RULE_RAW = LabelRule.from_mapping(
    {raw: training for training, raw in enumerate(RAW_IDS)},
    ignored={*range(34), 255} - {*RAW_IDS},
    meaning="raw ids 0..33, of which 19 are learned and the rest ignored",
)


SPEC = DatasetSpec(
    name="cityscapes",
    title="Cityscapes (19 classes)",
    classes=CLASSES,
    palette=PALETTE,
    label_rule=_RULE_PREPARED,
    splits={
        "train": SplitLayout("leftImg8bit/train", "gtFine/train"),
        "val": SplitLayout("leftImg8bit/val", "gtFine/val"),
        "test": SplitLayout("leftImg8bit/test", None),
    },
    default_root="data/cityscapes",
    download=Download(
        archives=(
            Archive(
                "leftImg8bit_trainvaltest.zip",
                (),
                parts={"leftImg8bit": "leftImg8bit"},
                size=11_600_000_000,
            ),
            Archive("gtFine_trainvaltest.zip", (), parts={"gtFine": "gtFine"}, size=253_000_000),
        ),
        terms="non-commercial purposes only, after registration",
        terms_page="https://www.cityscapes-dataset.com/license/",
        by_hand="register at https://www.cityscapes-dataset.com, download "
        "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB)",
    ),
    image_suffixes=("_leftImg8bit.png", "_leftImg8bit.jpg"),
    label_suffix="_gtFine_labelTrainIds.png",
    other_encodings=(("_gtFine_labelIds.png", _RULE_RAW),),
    notes="Where both forms of a label are present, the training ids are used. The test split "
    "has no public labels.",
    order=60,
    submission_ids=RAW_IDS,
)
