"""COCO-Stuff (Caesar et al., CVPR 2018): 171 classes, in two editions that differ on disk.

The 10k edition (9,000 train / 1,000 test) and the 164k edition share the class list but
not the encoding; taking one for the other shifts every class by one and more, so each
has its own rule, and ids that only occur in the sister are errors that say so.

=====================  ========  ==================  =======================
edition and form       ignored   classes             files end in
=====================  ========  ==================  =======================
10k, prepared          0         1..171              `_labelTrainIds.png`
10k, raw download      0         1..182 (11 unused)  `.mat`
164k, raw download     255       0..181 (11 unused)  `.png`
164k, prepared         255       0..170              `_labelTrainIds.png`
=====================  ========  ==================  =======================

Names follow the dataset's `labels.txt`, colors mmsegmentation's table (a few classes
share a color there).
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import Hint, LabelRule
from cgrseg.datasets.spec import Color, DatasetSpec, RawDownload, Recipe, SplitLayout

CLASSES: tuple[tuple[int, str, Color], ...] = (
    (0, "person", (0, 192, 64)),
    (1, "bicycle", (0, 192, 64)),
    (2, "car", (0, 64, 96)),
    (3, "motorcycle", (128, 192, 192)),
    (4, "airplane", (0, 64, 64)),
    (5, "bus", (0, 192, 224)),
    (6, "train", (0, 192, 192)),
    (7, "truck", (128, 192, 64)),
    (8, "boat", (0, 192, 96)),
    (9, "traffic light", (128, 192, 64)),
    (10, "fire hydrant", (128, 32, 192)),
    (12, "stop sign", (0, 0, 224)),
    (13, "parking meter", (0, 0, 64)),
    (14, "bench", (0, 160, 192)),
    (15, "bird", (128, 0, 96)),
    (16, "cat", (128, 0, 192)),
    (17, "dog", (0, 32, 192)),
    (18, "horse", (128, 128, 224)),
    (19, "sheep", (0, 0, 192)),
    (20, "cow", (128, 160, 192)),
    (21, "elephant", (128, 128, 0)),
    (22, "bear", (128, 0, 32)),
    (23, "zebra", (128, 32, 0)),
    (24, "giraffe", (128, 0, 128)),
    (26, "backpack", (64, 128, 32)),
    (27, "umbrella", (0, 160, 0)),
    (30, "handbag", (0, 0, 0)),
    (31, "tie", (192, 128, 160)),
    (32, "suitcase", (0, 32, 0)),
    (33, "frisbee", (0, 128, 128)),
    (34, "skis", (64, 128, 160)),
    (35, "snowboard", (128, 160, 0)),
    (36, "sports ball", (0, 128, 0)),
    (37, "kite", (192, 128, 32)),
    (38, "baseball bat", (128, 96, 128)),
    (39, "baseball glove", (0, 0, 128)),
    (40, "skateboard", (64, 0, 32)),
    (41, "surfboard", (0, 224, 128)),
    (42, "tennis racket", (128, 0, 0)),
    (43, "bottle", (192, 0, 160)),
    (45, "wine glass", (0, 96, 128)),
    (46, "cup", (128, 128, 128)),
    (47, "fork", (64, 0, 160)),
    (48, "knife", (128, 224, 128)),
    (49, "spoon", (128, 128, 64)),
    (50, "bowl", (192, 0, 32)),
    (51, "banana", (128, 96, 0)),
    (52, "apple", (128, 0, 192)),
    (53, "sandwich", (0, 128, 32)),
    (54, "orange", (64, 224, 0)),
    (55, "broccoli", (0, 0, 64)),
    (56, "carrot", (128, 128, 160)),
    (57, "hot dog", (64, 96, 0)),
    (58, "pizza", (0, 128, 192)),
    (59, "donut", (0, 128, 160)),
    (60, "cake", (192, 224, 0)),
    (61, "chair", (0, 128, 64)),
    (62, "couch", (128, 128, 32)),
    (63, "potted plant", (192, 32, 128)),
    (64, "bed", (0, 64, 192)),
    (66, "dining table", (0, 0, 32)),
    (69, "toilet", (64, 160, 128)),
    (71, "tv", (128, 64, 64)),
    (72, "laptop", (128, 0, 160)),
    (73, "mouse", (64, 32, 128)),
    (74, "remote", (128, 192, 192)),
    (75, "keyboard", (0, 0, 160)),
    (76, "cell phone", (192, 160, 128)),
    (77, "microwave", (128, 192, 0)),
    (78, "oven", (128, 0, 96)),
    (79, "toaster", (192, 32, 0)),
    (80, "sink", (128, 64, 128)),
    (81, "refrigerator", (64, 128, 96)),
    (83, "book", (64, 160, 0)),
    (84, "clock", (0, 64, 0)),
    (85, "vase", (192, 128, 224)),
    (86, "scissors", (64, 32, 0)),
    (87, "teddy bear", (0, 192, 128)),
    (88, "hair drier", (64, 128, 224)),
    (89, "toothbrush", (192, 160, 0)),
    (91, "banner", (0, 192, 0)),
    (92, "blanket", (192, 128, 96)),
    (93, "branch", (192, 96, 128)),
    (94, "bridge", (0, 64, 128)),
    (95, "building-other", (64, 0, 96)),
    (96, "bush", (64, 224, 128)),
    (97, "cabinet", (128, 64, 0)),
    (98, "cage", (192, 0, 224)),
    (99, "cardboard", (64, 96, 128)),
    (100, "carpet", (128, 192, 128)),
    (101, "ceiling-other", (64, 0, 224)),
    (102, "ceiling-tile", (192, 224, 128)),
    (103, "cloth", (128, 192, 64)),
    (104, "clothes", (192, 0, 96)),
    (105, "clouds", (192, 96, 0)),
    (106, "counter", (128, 64, 192)),
    (107, "cupboard", (0, 128, 96)),
    (108, "curtain", (0, 224, 0)),
    (109, "desk-stuff", (64, 64, 64)),
    (110, "dirt", (128, 128, 224)),
    (111, "door-stuff", (0, 96, 0)),
    (112, "fence", (64, 192, 192)),
    (113, "floor-marble", (0, 128, 224)),
    (114, "floor-other", (128, 224, 0)),
    (115, "floor-stone", (64, 192, 64)),
    (116, "floor-tile", (128, 128, 96)),
    (117, "floor-wood", (128, 32, 128)),
    (118, "flower", (64, 0, 192)),
    (119, "fog", (0, 64, 96)),
    (120, "food-other", (0, 160, 128)),
    (121, "fruit", (192, 0, 64)),
    (122, "furniture-other", (128, 64, 224)),
    (123, "grass", (0, 32, 128)),
    (124, "gravel", (192, 128, 192)),
    (125, "ground-other", (0, 64, 224)),
    (126, "hill", (128, 160, 128)),
    (127, "house", (192, 128, 0)),
    (128, "leaves", (128, 64, 32)),
    (129, "light", (128, 32, 64)),
    (130, "mat", (192, 0, 128)),
    (131, "metal", (64, 192, 32)),
    (132, "mirror-stuff", (0, 160, 64)),
    (133, "moss", (64, 0, 0)),
    (134, "mountain", (192, 192, 160)),
    (135, "mud", (0, 32, 64)),
    (136, "napkin", (64, 128, 128)),
    (137, "net", (64, 192, 160)),
    (138, "paper", (128, 160, 64)),
    (139, "pavement", (64, 128, 0)),
    (140, "pillow", (192, 192, 32)),
    (141, "plant-other", (128, 96, 192)),
    (142, "plastic", (64, 0, 128)),
    (143, "platform", (64, 64, 32)),
    (144, "playingfield", (0, 224, 192)),
    (145, "railing", (192, 0, 0)),
    (146, "railroad", (192, 64, 160)),
    (147, "river", (0, 96, 192)),
    (148, "road", (192, 128, 128)),
    (149, "rock", (64, 64, 160)),
    (150, "roof", (128, 224, 192)),
    (151, "rug", (192, 128, 64)),
    (152, "salad", (192, 64, 32)),
    (153, "sand", (128, 96, 64)),
    (154, "sea", (192, 0, 192)),
    (155, "shelf", (0, 192, 32)),
    (156, "sky-other", (64, 224, 64)),
    (157, "skyscraper", (64, 0, 64)),
    (158, "snow", (128, 192, 160)),
    (159, "solid-other", (64, 96, 64)),
    (160, "stairs", (64, 128, 192)),
    (161, "stone", (0, 192, 160)),
    (162, "straw", (192, 224, 64)),
    (163, "structural-other", (64, 128, 64)),
    (164, "table", (128, 192, 32)),
    (165, "tent", (192, 32, 192)),
    (166, "textile-other", (64, 64, 192)),
    (167, "towel", (0, 64, 32)),
    (168, "tree", (64, 160, 192)),
    (169, "vegetable", (192, 64, 64)),
    (170, "wall-brick", (128, 64, 160)),
    (171, "wall-concrete", (64, 32, 192)),
    (172, "wall-other", (192, 192, 192)),
    (173, "wall-panel", (0, 64, 160)),
    (174, "wall-stone", (192, 160, 192)),
    (175, "wall-tile", (192, 192, 0)),
    (176, "wall-wood", (128, 64, 96)),
    (177, "water-other", (192, 32, 64)),
    (178, "waterdrops", (192, 64, 128)),
    (179, "window-blind", (64, 192, 96)),
    (180, "window-other", (64, 160, 64)),
    (181, "wood", (64, 64, 0)),
)
"""Id in the 164k edition's raw files, name, RGB.  The `.mat` files of the 10k edition hold
the id plus one; row k is stored as k + 1 in the prepared 10k labels."""

RAW_IDS: tuple[int, ...] = tuple(raw for raw, _, _ in CLASSES)
"""Id in the raw 164k files (0..181), per class."""

UNUSED_IDS: frozenset[int] = frozenset(range(182)) - frozenset(RAW_IDS)
"""Ids of the 11 object names that COCO never annotated."""

_NAMES = tuple(name for _, name, _ in CLASSES)
_PALETTE = tuple(color for _, _, color in CLASSES)

_RULE_10K = LabelRule.reduce_zero(
    len(CLASSES),
    ignored=(),
    hints=(
        Hint(
            frozenset({182}),
            "ids up to 182 are those of the raw .mat files: make the labels with "
            "`cgrseg data convert coco-stuff10k`",
        ),
        Hint(
            frozenset({255}),
            "this looks like COCO-Stuff 164k (0..181 with 255 for 'unlabeled'): use "
            "data.dataset=coco_stuff164k, or make the labels from the .mat files with "
            "`cgrseg data convert coco-stuff10k`",
        ),
        Hint(
            frozenset(range(172, 182)),
            "these ids occur in the raw .mat files (1..182, 0 for 'unlabeled'), from which "
            "`cgrseg data convert coco-stuff10k` makes the labels, and in COCO-Stuff 164k (0..181, "
            "255 for 'unlabeled'), which needs data.dataset=coco_stuff164k",
        ),
    ),
)

_RULE_164K_RAW = LabelRule.from_mapping(
    {raw: training for training, raw in enumerate(RAW_IDS)},
    meaning="ids 0..181 of the raw download without the 11 unused ones, 255 is ignored",
    hints=(
        Hint(
            UNUSED_IDS | {182},
            "these ids do not occur in COCO-Stuff 164k, but do in labels that count from 1 or in "
            "prepared ones: prepared 10k labels need data.dataset=coco_stuff10k, prepared 164k "
            "labels the ending _labelTrainIds.png",
        ),
    ),
)

_RULE_164K_PREPARED = LabelRule.identity(
    len(CLASSES),
    hints=(
        Hint(
            frozenset({171}),
            "this looks like COCO-Stuff 10k (0 for 'unlabeled', 1..171): use "
            "data.dataset=coco_stuff10k",
        ),
        Hint(
            frozenset(range(172, 182)),
            "raw ids (0..181) end in .png alone; remove _labelTrainIds from the file names",
        ),
    ),
)

_TEST_10K = SplitLayout(images="images/test2014", labels="annotations/test2014")

SPEC_10K = DatasetSpec(
    name="coco_stuff10k",
    title="COCO-Stuff 10k (171 classes)",
    classes=_NAMES,
    palette=_PALETTE,
    label_rule=_RULE_10K,
    splits={
        "train": SplitLayout(images="images/train2014", labels="annotations/train2014"),
        "val": _TEST_10K,
        "test": _TEST_10K,
    },
    default_root="data/coco_stuff10k",
    how_to_get=(
        "fetch cocostuff-10k-v1.1.zip (2 GB) from "
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
        "cocostuff-10k-v1.1.zip, unpack it, then make the folders with "
        "`cgrseg data convert coco-stuff10k`; data/coco_stuff10k/images/train2014 must exist"
    ),
    image_suffixes=(".jpg", ".jpeg"),
    label_suffix="_labelTrainIds.png",
    notes="'val' and 'test' are the 1,000 test images, as in the published configs.",
    order=20,
    recipe=Recipe(
        "coco-stuff10k_80k",
        "COCO-Stuff-10k, 171 classes; 80,000 iterations are our choice, none were published.",
        {"schedule": {"max_iters": 80_000}},
    ),
    known_by_class_count=True,
    raw_download=RawDownload(
        ("imageLists", "annotations/*.mat"),
        "label maps in MATLAB files, as COCO-Stuff-10k is downloaded",
        "cgrseg data convert coco-stuff10k {root} --out OUT",
    ),
)

_VAL_164K = SplitLayout(images="images/val2017", labels="annotations/val2017")

SPEC_164K = DatasetSpec(
    name="coco_stuff164k",
    title="COCO-Stuff 164k (171 classes)",
    classes=_NAMES,
    palette=_PALETTE,
    label_rule=_RULE_164K_RAW,
    splits={
        "train": SplitLayout(images="images/train2017", labels="annotations/train2017"),
        "val": _VAL_164K,
        "test": _VAL_164K,
    },
    default_root="data/coco_stuff164k",
    how_to_get=(
        "fetch http://images.cocodataset.org/zips/train2017.zip (18 GB) and val2017.zip (1 GB) and "
        "unpack them into data/coco_stuff164k/images; fetch "
        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
        "stuffthingmaps_trainval2017.zip (0.7 GB) and unpack it into "
        "data/coco_stuff164k/annotations"
    ),
    image_suffixes=(".jpg", ".jpeg"),
    other_encodings=(("_labelTrainIds.png", _RULE_164K_PREPARED),),
    notes="Raw PNGs work as they are; labels prepared for mmsegmentation do too.",
    order=30,
)
