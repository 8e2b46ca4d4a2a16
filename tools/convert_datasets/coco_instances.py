"""Convert a COCO instance file; `cgrseg data convert coco` does the same.

Usage: python tools/convert_datasets/coco_instances.py instances_train.json train2017 data/mine \
           --split train
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.config.flags import FlagParser
from cgrseg.data.convert import convert_coco_instances
from cgrseg.data.convert.script import finish, progress_line


def main() -> int:
    """Parse the arguments, convert, say what was made."""
    parser = FlagParser(
        prog="tools/convert_datasets/coco_instances.py",
        description="COCO polygons and masks to label PNGs",
        takes_settings=False,
    )
    parser.add_argument("source", help="instances JSON file")
    parser.add_argument("image_folder", help="folder of the images")
    parser.add_argument("out", help="folder that gets images, annotations and classes.txt")
    parser.add_argument("--split", help="name of the split's folders, e.g. train")
    parser.add_argument("--background", help="class of pixels that nothing covers")
    parser.add_argument("--ignore", nargs="+", default=[], help="names whose pixels are ignored")
    parser.add_argument(
        "--images", "--image-mode", dest="images", choices=["link", "copy"], default="link"
    )
    parser.add_argument(
        "--nproc", "--workers", type=int, help="number of worker processes (default: automatic)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    given = parser.parse_args()
    return finish(
        lambda: convert_coco_instances(
            given.source,
            given.image_folder,
            given.out,
            split=given.split,
            background=given.background,
            ignored=given.ignore,
            image_mode=given.images,
            workers=given.nproc,
            overwrite=given.overwrite,
            progress=progress_line,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
