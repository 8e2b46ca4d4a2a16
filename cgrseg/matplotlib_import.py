"""Import matplotlib independently of MPLBACKEND; import this module before its users.

Notebooks set MPLBACKEND to their own backend, for the commands that they start as well.  Where
that backend is not installed, importing matplotlib fails, and with it torchmetrics and lightning,
although charts are written to files and need no backend.
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
    # The plots of a program still use that backend, where it exists.
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _chosen
