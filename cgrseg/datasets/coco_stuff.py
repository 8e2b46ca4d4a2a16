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
from cgrseg.datasets.spec import (
    Archive,
    DatasetSpec,
    Download,
    RawDownload,
    Recipe,
    SplitLayout,
    class_table,
)

CLASSES, PALETTE = class_table("""
    person 00c040, bicycle 00c040, car 004060, motorcycle 80c0c0, airplane 004040, bus 00c0e0,
    train 00c0c0, truck 80c040, boat 00c060, traffic light 80c040, fire hydrant 8020c0,
    stop sign 0000e0, parking meter 000040, bench 00a0c0, bird 800060, cat 8000c0, dog 0020c0,
    horse 8080e0, sheep 0000c0, cow 80a0c0, elephant 808000, bear 800020, zebra 802000,
    giraffe 800080, backpack 408020, umbrella 00a000, handbag 000000, tie c080a0, suitcase 002000,
    frisbee 008080, skis 4080a0, snowboard 80a000, sports ball 008000, kite c08020,
    baseball bat 806080, baseball glove 000080, skateboard 400020, surfboard 00e080,
    tennis racket 800000, bottle c000a0, wine glass 006080, cup 808080, fork 4000a0, knife 80e080,
    spoon 808040, bowl c00020, banana 806000, apple 8000c0, sandwich 008020, orange 40e000,
    broccoli 000040, carrot 8080a0, hot dog 406000, pizza 0080c0, donut 0080a0, cake c0e000,
    chair 008040, couch 808020, potted plant c02080, bed 0040c0, dining table 000020,
    toilet 40a080, tv 804040, laptop 8000a0, mouse 402080, remote 80c0c0, keyboard 0000a0,
    cell phone c0a080, microwave 80c000, oven 800060, toaster c02000, sink 804080,
    refrigerator 408060, book 40a000, clock 004000, vase c080e0, scissors 402000,
    teddy bear 00c080, hair drier 4080e0, toothbrush c0a000, banner 00c000, blanket c08060,
    branch c06080, bridge 004080, building-other 400060, bush 40e080, cabinet 804000, cage c000e0,
    cardboard 406080, carpet 80c080, ceiling-other 4000e0, ceiling-tile c0e080, cloth 80c040,
    clothes c00060, clouds c06000, counter 8040c0, cupboard 008060, curtain 00e000,
    desk-stuff 404040, dirt 8080e0, door-stuff 006000, fence 40c0c0, floor-marble 0080e0,
    floor-other 80e000, floor-stone 40c040, floor-tile 808060, floor-wood 802080, flower 4000c0,
    fog 004060, food-other 00a080, fruit c00040, furniture-other 8040e0, grass 002080,
    gravel c080c0, ground-other 0040e0, hill 80a080, house c08000, leaves 804020, light 802040,
    mat c00080, metal 40c020, mirror-stuff 00a040, moss 400000, mountain c0c0a0, mud 002040,
    napkin 408080, net 40c0a0, paper 80a040, pavement 408000, pillow c0c020, plant-other 8060c0,
    plastic 400080, platform 404020, playingfield 00e0c0, railing c00000, railroad c040a0,
    river 0060c0, road c08080, rock 4040a0, roof 80e0c0, rug c08040, salad c04020, sand 806040,
    sea c000c0, shelf 00c020, sky-other 40e040, skyscraper 400040, snow 80c0a0,
    solid-other 406040, stairs 4080c0, stone 00c0a0, straw c0e040, structural-other 408040,
    table 80c020, tent c020c0, textile-other 4040c0, towel 004020, tree 40a0c0, vegetable c04040,
    wall-brick 8040a0, wall-concrete 4020c0, wall-other c0c0c0, wall-panel 0040a0,
    wall-stone c0a0c0, wall-tile c0c000, wall-wood 804060, water-other c02040, waterdrops c04080,
    window-blind 40c060, window-other 40a040, wood 404000
""")
"""In training-id order; class k is stored as k + 1 in the prepared 10k labels."""

UNUSED_IDS = frozenset({11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90})
"""Ids of the 11 object names that COCO never annotated."""

RAW_IDS = tuple(raw for raw in range(182) if raw not in UNUSED_IDS)
"""Id per class in the raw 164k files; the `.mat` files of the 10k edition hold the id plus one."""

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

_CALVIN = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
_TERMS = "images: terms of use of Flickr; annotations of COCO and COCO-Stuff: CC BY 4.0"

_TEST_10K = SplitLayout(images="images/test2014", labels="annotations/test2014")

SPEC_10K = DatasetSpec(
    name="coco_stuff10k",
    title="COCO-Stuff 10k (171 classes)",
    classes=CLASSES,
    palette=PALETTE,
    label_rule=_RULE_10K,
    splits={
        "train": SplitLayout(images="images/train2014", labels="annotations/train2014"),
        "val": _TEST_10K,
        "test": _TEST_10K,
    },
    default_root="data/coco_stuff10k",
    download=Download(
        archives=(
            Archive(
                "cocostuff-10k-v1.1.zip",
                (f"{_CALVIN}/cocostuff-10k-v1.1.zip",),
                parts={name: name for name in ("images", "annotations", "imageLists")},
                size=2_000_000_000,
                raw=True,
            ),
        ),
        terms=_TERMS,
        terms_page="https://github.com/nightrome/cocostuff10k#licensing",
        converter="coco-stuff10k",
        package="scipy",
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
    classes=CLASSES,
    palette=PALETTE,
    label_rule=_RULE_164K_RAW,
    splits={
        "train": SplitLayout(images="images/train2017", labels="annotations/train2017"),
        "val": _VAL_164K,
        "test": _VAL_164K,
    },
    default_root="data/coco_stuff164k",
    download=Download(
        archives=(
            *(
                Archive(
                    f"{name}.zip",
                    (f"http://images.cocodataset.org/zips/{name}.zip",),
                    parts={name: f"images/{name}"},
                    size=size,
                    digest=f"md5:{digest}",
                    digest_from="the data loaders of PaddleDetection and LVIS",
                )
                for name, size, digest in (
                    ("train2017", 19_300_000_000, "cced6f7f71b7629ddf16f17bbcfab6b2"),
                    ("val2017", 816_000_000, "442b8da7639aecaf257c1dceb8ba8c80"),
                )
            ),
            Archive(
                "stuffthingmaps_trainval2017.zip",
                (f"{_CALVIN}/stuffthingmaps_trainval2017.zip",),
                parts={name: f"annotations/{name}" for name in ("train2017", "val2017")},
                size=690_000_000,
            ),
        ),
        terms=_TERMS,
        terms_page="https://github.com/nightrome/cocostuff#licensing",
    ),
    image_suffixes=(".jpg", ".jpeg"),
    other_encodings=(("_labelTrainIds.png", _RULE_164K_PREPARED),),
    notes="Raw PNGs work as they are; labels prepared for mmsegmentation do too.",
    order=30,
)
