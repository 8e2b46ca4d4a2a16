"""CGRSeg-B on Pascal Context (59 classes).  The 80k schedule is ours: none was published."""

from cgrseg.config import preset

config = preset("cgrseg_b", "pascal_context59")
