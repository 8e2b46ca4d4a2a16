"""Conversion of published and hand-made annotations to the label PNGs of a training.

:mod:`cgrseg.data.convert.formats` has one module per source format, with one class whose fields
are its options; :func:`cgrseg.data.convert.runner.run_conversion` runs it and reports what was
made, and what was skipped and why.  The functions here do both in one call.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from cgrseg.data.convert.format import ConversionReport, Format
from cgrseg.data.convert.formats.coco import CocoInstances
from cgrseg.data.convert.formats.coco_stuff10k import CocoStuff10k
from cgrseg.data.convert.formats.labelme import LabelMe
from cgrseg.data.convert.formats.mat import MatLabels
from cgrseg.data.convert.formats.pascal_context import PascalContext
from cgrseg.data.convert.formats.rgb import RgbMasks
from cgrseg.data.convert.runner import run_conversion
from cgrseg.progress import Progress

__all__ = [
    "convert_coco_instances",
    "convert_coco_stuff10k",
    "convert_labelme",
    "convert_mat_labels",
    "convert_pascal_context",
    "convert_rgb_masks",
]


_LOG = logging.getLogger("cgrseg.data")


def _convert(
    kind: type[Format], *arguments: Any, progress: Progress | None = None, **options: Any
) -> ConversionReport:
    if "colours" in options:
        _LOG.warning("the argument 'colours' is now called 'colors'")
        options["colors"] = options.pop("colours")
    return run_conversion(kind(*arguments, **options), progress)


convert_coco_instances = functools.partial(_convert, CocoInstances)
convert_coco_stuff10k = functools.partial(_convert, CocoStuff10k)
convert_labelme = functools.partial(_convert, LabelMe)
convert_mat_labels = functools.partial(_convert, MatLabels)
convert_pascal_context = functools.partial(_convert, PascalContext)
convert_rgb_masks = functools.partial(_convert, RgbMasks)
