"""Cityscapes (Cordts et al., CVPR 2016): 19 classes of street scenes.

Both forms of its labels are read: `_gtFine_labelTrainIds.png`, made by the dataset's own
scripts, and the raw `_gtFine_labelIds.png` of the download.  Ids, names and colors are
those of `cityscapesscripts/helpers/labels.py`.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import Hint, LabelRule
from cgrseg.datasets.spec import Color, DatasetSpec, SplitLayout

CLASSES: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""Raw id, name, RGB; row k is stored as k in the prepared labels."""

_RAW_IDS = tuple(raw for raw, _, _ in CLASSES)

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
    {raw: training for training, raw in enumerate(_RAW_IDS)},
    ignored={*range(34), 255} - {*_RAW_IDS},
    meaning="raw ids 0..33, of which 19 are learned and the rest ignored",
)


SPEC = DatasetSpec(
    name="cityscapes",
    title="Cityscapes (19 classes)",
    classes=tuple(name for _, name, _ in CLASSES),
    palette=tuple(color for _, _, color in CLASSES),
    label_rule=_RULE_PREPARED,
    splits={
        "train": SplitLayout("leftImg8bit/train", "gtFine/train"),
        "val": SplitLayout("leftImg8bit/val", "gtFine/val"),
        "test": SplitLayout("leftImg8bit/test", None),
    },
    default_root="data/cityscapes",
    how_to_get=(
        "register at https://www.cityscapes-dataset.com, fetch leftImg8bit_trainvaltest.zip "
        "(11 GB) and gtFine_trainvaltest.zip (241 MB), and unpack both into data/cityscapes, so "
        "that data/cityscapes/leftImg8bit/train exists"
    ),
    image_suffixes=("_leftImg8bit.png", "_leftImg8bit.jpg"),
    label_suffix="_gtFine_labelTrainIds.png",
    other_encodings=(("_gtFine_labelIds.png", _RULE_RAW),),
    notes="Where both forms of a label are present, the training ids are used. The test split "
    "has no public labels.",
    order=60,
    submission_ids=_RAW_IDS,
)
