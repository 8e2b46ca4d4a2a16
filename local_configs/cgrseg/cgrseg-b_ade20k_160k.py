"""CGRSeg-B on ADE20K (150 classes), the published settings."""

from cgrseg.config import preset

config = preset("cgrseg_b", "ade20k")
