"""Import matplotlib, whatever MPLBACKEND says; import this module before what imports matplotlib.

Notebooks name their own backend in MPLBACKEND, for the commands that they start as well.  Where
that backend is not installed, matplotlib refuses to be imported, and torchmetrics and lightning
with it, although charts are written to files and need no backend.
"""

from __future__ import annotations

import contextlib
import os

_chosen = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
finally:
    if _chosen is not None:
        os.environ["MPLBACKEND"] = _chosen
if _chosen:
    # A program's own plots still follow it, where it exists.
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _chosen
