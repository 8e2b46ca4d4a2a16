"""Convert Pascal Context; `cgrseg data convert pascal-context` does the same.

Usage: python tools/convert_datasets/pascal_context.py data/VOCdevkit \
           data/VOCdevkit/VOC2010/trainval_merged.json
"""

from __future__ import annotations

import sys
from pathlib import Path

# A checkout runs its own code, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cgrseg.config.flags import FlagParser
from cgrseg.data.convert import convert_pascal_context
from cgrseg.data.convert.script import finish, progress_line


def main() -> int:
    """Parse the arguments, convert, say what was made."""
    parser = FlagParser(
        prog="tools/convert_datasets/pascal_context.py",
        description="Pascal Context to label PNGs of 59 classes",
        takes_settings=False,
    )
    parser.add_argument("devkit_path", type=Path, help="VOCdevkit, or the VOC2010 folder in it")
    parser.add_argument(
        "source", help="trainval_merged.json, or the folder of the 459-class .mat files"
    )
    parser.add_argument("-o", "--out-dir", type=Path, help="default: the VOC2010 folder")
    parser.add_argument("--lists", help="folder with train.txt and val.txt")
    parser.add_argument(
        "--nproc", "--workers", type=int, help="number of worker processes (default: automatic)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    given = parser.parse_args()
    inner = given.devkit_path / "VOC2010"
    out = given.out_dir or (inner if inner.is_dir() else given.devkit_path)
    return finish(
        lambda: convert_pascal_context(
            given.source,
            out,
            lists=given.lists,
            workers=given.nproc,
            overwrite=given.overwrite,
            progress=progress_line,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
