"""Convert the raw COCO-Stuff-10k download; `cgrseg data convert coco-stuff10k` does the same.

Usage: python tools/convert_datasets/coco_stuff10k.py data/coco_stuff10k --nproc 8
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.config.flags import FlagParser
from cgrseg.data.convert import convert_coco_stuff10k
from cgrseg.data.convert.script import finish, progress_line


def main() -> int:
    """Parse the arguments, convert, say what was made."""
    parser = FlagParser(
        prog="tools/convert_datasets/coco_stuff10k.py",
        description="COCO-Stuff-10k .mat files to label PNGs",
        takes_settings=False,
    )
    parser.add_argument("coco_path", help="folder with images, annotations and imageLists")
    parser.add_argument("-o", "--out-dir", help="folder of the result (default: coco_path)")
    parser.add_argument("--lists", nargs="+", choices=["train", "test"], help="default: both")
    parser.add_argument(
        "--images", "--image-mode", dest="images", choices=["link", "copy"], default="link"
    )
    parser.add_argument(
        "--nproc", "--workers", type=int, help="number of worker processes (default: automatic)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    given = parser.parse_args()
    return finish(
        lambda: convert_coco_stuff10k(
            given.coco_path,
            given.out_dir,
            lists=given.lists,
            image_mode=given.images,
            workers=given.nproc,
            overwrite=given.overwrite,
            progress=progress_line,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
