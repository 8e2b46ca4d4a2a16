"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.errors import WeightsError
from cgrseg.inference.exported.backend import Run
from cgrseg.inference.exported.damage import damaged
from cgrseg.inference.exported.description import KEY, Description
from cgrseg.inference.exported.packages import need
from cgrseg.input_files import read_input

# Each shape has a session of its own, with its own copy of the weights.
_MAX_SESSIONS = 4


def open_onnx(path: Path) -> tuple[Description, Run]:
    """Description of a file, and the file as a function.

    A free shape is fixed as soon as it is known: the runtime then computes resized tables
    once, when it loads, in place of every time.  It uses as many threads as PyTorch does now.

    Raises:
        EnvironmentProblem: ONNX Runtime is not installed.
        WeightsError: a damaged file, or one of other origin.
    """
    onnxruntime = need("onnxruntime", path)
    content = read_input(path)
    threads = torch.get_num_threads()
    first = _session(onnxruntime, content, {}, path, threads, optimise=False)
    description = Description.read(first.get_modelmeta().custom_metadata_map.get(KEY), path)
    source = first.get_inputs()[0]
    name, axes = source.name, list(source.shape)
    del first
    sessions: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
        session = sessions.get(array.shape)
        if session is None:
            known = {
                axis: side
                for axis, side in zip(axes, array.shape, strict=True)
                if isinstance(axis, str)
            }
            session = _session(onnxruntime, content, known, path, threads)
            sessions[array.shape] = session
            if len(sessions) > _MAX_SESSIONS:
                sessions.popitem(last=False)
        sessions.move_to_end(array.shape)
        result: NDArray[np.generic] = session.run(None, {name: array})[0]
        return result

    return description, run


def _session(
    onnxruntime: Any,
    content: bytes,
    known: dict[str, int],
    path: Path,
    threads: int,
    *,
    optimise: bool = True,
) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimisation
    options.intra_op_num_threads = threads
    if not optimise:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    for axis, side in known.items():
        options.add_free_dimension_override_by_name(axis, side)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has many classes of its own
        raise WeightsError(damaged(path, "an ONNX model", error)) from error
