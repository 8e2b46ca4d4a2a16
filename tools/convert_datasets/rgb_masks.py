"""Convert colour masks; `cgrseg data convert rgb` does the same.

Usage: python tools/convert_datasets/rgb_masks.py photos masks data/mine --colours colours.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.config.flags import FlagParser
from cgrseg.data.convert import convert_rgb_masks
from cgrseg.data.convert.script import finish, progress_line


def main() -> int:
    """Parse the arguments, convert, say what was made."""
    parser = FlagParser(
        prog="tools/convert_datasets/rgb_masks.py",
        description="Colour masks to label PNGs",
        takes_settings=False,
    )
    parser.add_argument("image_folder", help="folder of the images")
    parser.add_argument("masks", help="folder of the masks")
    parser.add_argument("out", help="folder that gets images, annotations and classes.txt")
    parser.add_argument("--colours", "--colors", help="file of lines such as 'road 128 64 128'")
    parser.add_argument("--mask-suffix", default="", help="what mask names have at their end")
    parser.add_argument("--split", help="name of the split's folders, e.g. train")
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
        lambda: convert_rgb_masks(
            given.image_folder,
            given.masks,
            given.out,
            colours=given.colours,
            mask_suffix=given.mask_suffix,
            split=given.split,
            ignored=given.ignore,
            image_mode=given.images,
            workers=given.nproc,
            overwrite=given.overwrite,
            progress=progress_line,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
