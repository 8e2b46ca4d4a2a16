"""Convert LabelMe files; `cgrseg data convert labelme` does the same.

Usage: python tools/convert_datasets/labelme.py annotated data/mine --background other
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.config.flags import FlagParser
from cgrseg.data.convert import convert_labelme
from cgrseg.data.convert.script import finish, progress_line


def main() -> int:
    """Parse the arguments, convert, say what was made."""
    parser = FlagParser(
        prog="tools/convert_datasets/labelme.py",
        description="LabelMe JSON files to label PNGs",
        takes_settings=False,
    )
    parser.add_argument("source", help="folder with the JSON files")
    parser.add_argument("out", help="folder that gets images, annotations and classes.txt")
    parser.add_argument("--image-folder", help="folder of the images (default: as the files say)")
    parser.add_argument("--split", help="name of the split's folders, e.g. train")
    parser.add_argument("--classes", nargs="+", help="names in id order (default: those found)")
    parser.add_argument("--background", help="class of pixels that no shape covers")
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
        lambda: convert_labelme(
            given.source,
            given.out,
            images=given.image_folder,
            split=given.split,
            classes=given.classes,
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
