"""Turning published and hand-made annotations into the label PNGs that are trained on.

One module per source format; :mod:`cgrseg.data.convert.runner` is what they share.
Each function returns a :class:`ConversionReport` with what was made and what was
skipped, and why.
"""

from __future__ import annotations

from cgrseg.data.convert.coco_instances import convert_coco_instances
from cgrseg.data.convert.coco_stuff import convert_coco_stuff10k
from cgrseg.data.convert.labelme import convert_labelme
from cgrseg.data.convert.mat_labels import convert_mat_labels
from cgrseg.data.convert.pascal_context import convert_pascal_context
from cgrseg.data.convert.rgb_masks import convert_rgb_masks, list_colours, read_colour_table
from cgrseg.data.convert.runner import ConversionReport, Failure

__all__ = [
    "ConversionReport",
    "Failure",
    "convert_coco_instances",
    "convert_coco_stuff10k",
    "convert_labelme",
    "convert_mat_labels",
    "convert_pascal_context",
    "convert_rgb_masks",
    "list_colours",
    "read_colour_table",
]
