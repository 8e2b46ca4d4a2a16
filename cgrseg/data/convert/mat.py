"""Label maps in MATLAB files (`.mat` up to version 7).

COCO-Stuff-10k and Pascal Context are published like that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.errors import DataError, EnvironmentProblem, explain


def read_mat(path: Path) -> dict[str, Any]:
    """All variables of a MATLAB file.

    Raises:
        EnvironmentProblem: scipy is not installed.
        DataError: the file cannot be read.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise EnvironmentProblem(
            explain(
                path,
                found="MATLAB files need the package scipy, which is not installed",
                expected="the extra 'convert'",
                remedy="pip install 'cgrseg[convert]'",
            )
        ) from error
    try:
        return dict(loadmat(path))
    except NotImplementedError as error:
        raise DataError(
            explain(
                path,
                found="a MATLAB file of version 7.3 (HDF5)",
                expected="version 7 or older, as the published label files are",
                remedy="save it from MATLAB with save(..., '-v7')",
            )
        ) from error
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise DataError(
            explain(
                path,
                found=f"it cannot be read as a MATLAB file ({type(error).__name__}: {error})",
                expected="an undamaged .mat file",
                remedy="extract or download it again",
            )
        ) from error


def label_field(variables: dict[str, Any], name: str, path: Path, *, highest: int) -> np.ndarray:
    """The label map among a MATLAB file's variables.

    Args:
        variables: from :func:`read_mat`.
        name: the field that holds the label map.
        path: the file, for messages.
        highest: largest id that the published data has.

    Returns:
        (H, W) uint16, values 0..highest.

    Raises:
        DataError: no such field, not a label map, or an id out of range.
    """
    fields = sorted(key for key in variables if not key.startswith("__"))
    if name not in fields:
        hint = "extract the dataset's own annotations folder"
        if "labelMapThings" in fields:
            hint = (
                "this file belongs to the annotation tool of COCO-Stuff (a mask of things, no "
                "classes); use the annotations folder of the dataset's download"
            )
        raise DataError(
            explain(
                path,
                found=f"no field {name!r}, only {', '.join(fields) or 'nothing'}",
                expected=f"the label map in field {name!r}",
                remedy=hint,
            )
        )
    labels = np.asarray(variables[name])
    if labels.ndim != 2 or 0 in labels.shape or labels.dtype.kind not in "uif":
        raise DataError(
            explain(
                path,
                found=f"field {name!r} of shape {labels.shape} and type {labels.dtype}",
                expected="a two-dimensional array of numbers",
                remedy="extract or download it again",
            )
        )
    whole = np.array_equal(labels, np.floor(labels)) if labels.dtype.kind == "f" else True
    if not whole or labels.min() < 0 or labels.max() > highest:
        raise DataError(
            explain(
                path,
                found=f"values from {labels.min()} to {labels.max()} in field {name!r}",
                expected=f"whole numbers from 0 to {highest}",
                remedy="check that this is the right dataset; extract or download it again",
            )
        )
    return labels.astype(np.uint16)
