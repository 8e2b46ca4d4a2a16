"""Label maps in MATLAB files (`.mat` up to version 7).

COCO-Stuff-10k and Pascal Context are published like that.  The files are read in a process
of their own (:mod:`cgrseg.data.mat_process`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cgrseg.data.mat_process import MAT_READER, MatAnswer, ReaderDied, ReaderMissing
from cgrseg.errors import DataError, EnvironmentProblem
from cgrseg.extras import require


def read_label_field(path: Path, name: str, *, highest: int) -> np.ndarray:
    """The label map in a field of a MATLAB file.

    Args:
        path: the file.
        name: the field that holds the label map.
        highest: largest id that the published data has.

    Returns:
        (H, W) uint16, values 0..highest.

    Raises:
        EnvironmentProblem: scipy is not installed.
        DataError: the file cannot be read, no such field, not a label map, or an id out of
            range.
    """
    answer = _answer(path, name)
    if name not in answer.fields:
        hint = "extract the dataset's own annotations folder"
        if "labelMapThings" in answer.fields:
            hint = (
                "this file belongs to the annotation tool of COCO-Stuff (a mask of things, no "
                "classes); use the annotations folder of the dataset's download"
            )
        raise DataError(
            path,
            found=f"no field {name!r}, only {', '.join(answer.fields) or 'nothing'}",
            expected=f"the label map in field {name!r}",
            remedy=hint,
        )
    labels = answer.values
    if labels is None or labels.ndim != 2 or 0 in labels.shape or labels.dtype.kind not in "uif":
        raise DataError(
            path,
            found=f"field {name!r} of {answer.form}",
            expected="a two-dimensional array of numbers",
            remedy="extract or download it again",
        )
    whole = np.array_equal(labels, np.floor(labels)) if labels.dtype.kind == "f" else True
    if not whole or labels.min() < 0 or labels.max() > highest:
        raise DataError(
            path,
            found=f"values from {labels.min()} to {labels.max()} in field {name!r}",
            expected=f"whole numbers from 0 to {highest}",
            remedy="check that this is the right dataset; extract or download it again",
        )
    return labels.astype(np.uint16)


def only_field(path: Path) -> str:
    """Name of the one variable that a MATLAB file holds.

    Raises:
        EnvironmentProblem: scipy is not installed.
        DataError: the file cannot be read, or holds more than one variable or none.
    """
    fields = _answer(path, "").fields
    if len(fields) != 1:
        raise DataError(
            path,
            found=f"{len(fields)} variables: {', '.join(fields) or 'none'}",
            expected="one variable, the label map",
            remedy="name the variable that holds the label map with --field",
        )
    return str(fields[0])


def _answer(path: Path, name: str) -> MatAnswer:
    """What the reading process says of a file, if it could read it."""
    require("scipy", path)
    try:
        answer = MAT_READER.read(path, name)
    except ReaderDied as error:
        raise DataError(
            path,
            found=f"reading it ended the process that reads MATLAB files ({error})",
            expected="an undamaged .mat file",
            remedy="the file is damaged: extract or download it again",
        ) from error
    except (ReaderMissing, OSError) as error:
        raise EnvironmentProblem(
            path,
            found=f"the process that reads MATLAB files does not start ({error})",
            expected="a process that imports scipy",
            remedy="check `python -c 'import scipy.io'`, and that another process may start",
        ) from error
    if answer.error == "NotImplementedError":
        raise DataError(
            path,
            found="a MATLAB file of version 7.3 (HDF5)",
            expected="version 7 or older, as the published label files are",
            remedy="save it from MATLAB with save(..., '-v7')",
        )
    if answer.error:
        raise DataError(
            path,
            found=f"it cannot be read as a MATLAB file ({answer.error}: {answer.reason})",
            expected="an undamaged .mat file",
            remedy="extract or download it again",
        )
    return answer
