"""CGRSeg-T on your own folder: copy this file, rename it, change what differs.

Expected below `root`: images/ and annotations/ with files of the same names (each with
train/ and val/ folders, or all together: a fifth is then held out by seed), and
classes.txt with one class name a line in id order.  Label PNGs hold class ids; 255 is
ignored.  All settings: docs/configuration.md.
"""

from cgrseg.config import preset

config = preset(
    "cgrseg_t",
    "custom",
    data={"root": "data/custom", "zero_is_ignore": False},
    schedule={"max_iters": 20_000},
    train={"batch_size": 8, "eval_interval": 1_000},
)
