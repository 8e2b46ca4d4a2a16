"""CGRSeg-B on COCO-Stuff-10k (171 classes).  The 80k schedule is ours: none was published."""

from cgrseg.config import preset

config = preset("cgrseg_b", "coco_stuff10k")
