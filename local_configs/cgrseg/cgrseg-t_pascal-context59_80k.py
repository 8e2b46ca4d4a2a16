"""CGRSeg-T on Pascal Context (59 classes).  The 80k schedule is ours: none was published."""

from cgrseg.config import preset

config = preset("cgrseg_t", "pascal_context59")
