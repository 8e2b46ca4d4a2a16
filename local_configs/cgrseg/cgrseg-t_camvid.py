"""CGRSeg-T on CamVid (11 classes): a real run that two CPU cores finish within the hour.

Quote the test split: its validation frames come from a drive that also trains.
"""

from cgrseg.config import preset

config = preset("cgrseg_t", "camvid")
