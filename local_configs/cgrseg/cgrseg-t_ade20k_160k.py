"""CGRSeg-T on ADE20K (150 classes), the published settings."""

from cgrseg.config import preset

config = preset("cgrseg_t", "ade20k")
