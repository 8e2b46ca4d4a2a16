"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgrseg.errors import MALFORMED, WeightsError
from cgrseg.extras import require
from cgrseg.inference.exported.damage import damaged
from cgrseg.inference.exported.description import KEY, Description, Run
from cgrseg.inference.exported.seal import refuse_damage
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
    onnxruntime = require("onnxruntime", path)
    content = read_input(path)
    text = _description_in(content)
    description = Description.read(text, path)
    refuse_damage(content, description, path, "an ONNX model")
    _refuse_other_files(content, text, path)
    threads = torch.get_num_threads()
    first = _session(onnxruntime, content, {}, path, threads, optimise=False)
    try:
        told = first.get_modelmeta().custom_metadata_map.get(KEY)
        source = first.get_inputs()[0]
        name, axes = source.name, list(source.shape)
    except MALFORMED as error:  # names that are no text, no input
        raise WeightsError(damaged(path, "an ONNX model", error)) from error
    if told != text:
        raise WeightsError(damaged(path, "an ONNX model", "it holds two descriptions"))
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


def _description_in(content: bytes) -> str | None:
    """The description in a file's metadata, found without a runtime; None: there is none.

    An entry of the metadata is a message of two texts: field 1 the key, field 2 the value, each
    behind its length in groups of 7 bits.
    """
    key = KEY.encode()
    marker = b"\x0a" + bytes([len(key)]) + key + b"\x12"
    place = content.rfind(marker)
    if place < 0:
        return None
    place += len(marker)
    length = shift = 0
    for byte in content[place : place + 5]:
        place += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return content[place : place + length].decode("utf-8", "replace")


def _refuse_other_files(content: bytes, text: str | None, path: Path) -> None:
    """Refuse tensors that lie in other files: a foreign file could name any file, or memory.

    Such a tensor has an entry with the key `location`, which nothing else in our files has but
    the description.
    """
    if content.count(b"location") > (text or "").encode().count(b"location"):
        raise WeightsError(
            path,
            found="an ONNX model whose tensors lie in other files",
            expected="one file that holds everything, as cgrseg export writes it",
            remedy="export the checkpoint again with cgrseg export",
        )


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
