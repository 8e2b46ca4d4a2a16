"""For LiteRT (TensorFlow Lite), on phones and boards.

The description is in a ZIP archive behind the model, which LiteRT ignores.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgrseg.console import native_output_hidden
from cgrseg.devices import cpu_threads
from cgrseg.extras import require
from cgrseg.formats.base import ExportJob, Inputs, QuantizableFormat, Run, matching_nodes
from cgrseg.formats.description import Description, append_description, damaged, read_appended
from cgrseg.formats.torch_program import example_input, quiet_exporter
from cgrseg.input_files import read_input
from cgrseg.precision import Precision

_KIND = "a LiteRT model"


class LitertFormat(QuantizableFormat):
    """LiteRT models, run on the CPU by XNNPACK's kernels."""

    suffix = ".tflite"
    packages = ("litert_torch", "ai_edge_litert")
    stored = ("fp32", "fp16", "int8")
    needs_sizes = True
    one_size = True
    default_batch = 1

    def build(self, job: ExportJob) -> bytes:
        """Content of a float32 model."""
        litert_torch = require("litert_torch", "export as litert")
        assert job.size is not None and job.description.batch is not None  # both are needed
        example = example_input(job.description, job.size, job.description.batch)
        with (
            tempfile.TemporaryDirectory() as folder,
            quiet_exporter(),
            native_output_hidden(),
        ):
            file = Path(folder, "model.tflite")
            litert_torch.convert(job.graph(job.size), (example,)).export(str(file))
            return read_input(file)

    def save(self, model: bytes, description: Description, path: Path) -> None:
        """Write the content of a model with its description."""
        if description.precision == "fp16":
            model = _in_half_precision(model)
        path.write_bytes(model)
        share = _delegated_share(_interpreter(path, model))
        append_description(path, description.model_copy(update={"delegated": share}))

    def quantize(self, model: bytes, inputs: Inputs, kept: Sequence[str]) -> bytes:
        """See :class:`QuantizableFormat`; AI Edge Quantizer quantizes, input and output stay."""
        subject = "quantization for litert"
        quantizers = require("ai_edge_quantizer.quantizer", subject)
        recipe = require("ai_edge_quantizer.recipe", subject)
        interpreter = _interpreter(Path(subject), model)
        made = quantizers.Quantizer(bytearray(model), recipe.static_wi8_ai8())
        scopes = _scopes(interpreter)
        rest = {"op_config": None, "algorithm_key": quantizers.AlgorithmName.NO_QUANTIZE}
        for boundary in ("INPUT", "OUTPUT"):
            made.update_quantization_recipe(".*", recipe.TFLOperationName(boundary), **rest)
        for name in matching_nodes(list(scopes), kept):
            scope = f"^{re.escape(scopes[name])}"
            made.update_quantization_recipe(scope, recipe.TFLOperationName("*"), **rest)
        signature, names = next(iter(interpreter.get_signature_list().items()))
        values = [{names["inputs"][0]: value} for value in inputs]  # they are read twice
        with quiet_exporter(), native_output_hidden():
            found = made.calibrate({signature: values}, num_threads=cpu_threads())
            return bytes(made.quantize(found, enable_progress_report=False).quantized_model)

    def describe(self, path: Path) -> Description:
        """See :class:`ExportFormat`."""
        return read_appended(path, _KIND)[0]

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`.

        It uses as many threads as :func:`~cgrseg.devices.cpu_threads` says now.
        """
        description, content = read_appended(path, _KIND)
        interpreter = _interpreter(path, content)
        source, target = (
            details[0]["index"]
            for details in (interpreter.get_input_details(), interpreter.get_output_details())
        )

        def run(array: NDArray[np.generic]) -> NDArray[np.generic]:
            interpreter.set_tensor(source, array)
            interpreter.invoke()
            found: NDArray[np.generic] = interpreter.get_tensor(target)
            return found

        return description, run


def _in_half_precision(model: bytes) -> bytes:
    """A copy whose convolutions and fully connected layers have float16 weights."""
    subject = "half precision for litert"
    made = require("ai_edge_quantizer.quantizer", subject)
    operations = require("ai_edge_quantizer.recipe", subject).TFLOperationName
    quantizer = made.Quantizer(bytearray(model))
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        quantizer.add_weight_only_config(
            ".*", operations(name), num_bits=16, algorithm_key=made.AlgorithmName.FLOAT_CASTING
        )
    with native_output_hidden():
        return bytes(quantizer.quantize(enable_progress_report=False).quantized_model)


def _interpreter(path: Path, content: bytes) -> Any:
    """An interpreter with its tensors allocated."""
    interpreters = require("ai_edge_litert.interpreter", path)
    try:
        with native_output_hidden():
            made = interpreters.Interpreter(model_content=content, num_threads=cpu_threads())
            made.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise damaged(path, _KIND, error) from error
    return made


def _scopes(interpreter: Any) -> dict[str, str]:
    """Operations by name, `MODULE/OPERATION_NUMBER` as in ONNX files, to the quantizer's names.

    These are the names of the results: classes with their modules, `CLASS_MODULE/...`.
    """
    names = {each["index"]: each["name"] for each in interpreter.get_tensor_details()}
    alike = {"BATCH_MATMUL": "MatMul", "SOFTMAX": "Softmax", "FULLY_CONNECTED": "MatMul"}
    found = {}
    for operation in interpreter._get_ops_details():
        if operation["op_name"] == "DELEGATE":
            continue
        scope = names[int(operation["outputs"][0])]
        parts = re.findall(r"[^/;]*?[A-Z]\w*?_(\w+)(?=[/;])", scope.partition(";")[0] + ";")
        kind = alike.get(operation["op_name"], operation["op_name"])
        # The list of the backbone's stages is not called, so it is in no name.
        module = re.sub(r"backbone\.(?=\d)", "backbone.layers.", ".".join(parts))
        found[f"{module}/{kind}_{operation['index']}"] = scope
    return found


def _delegated_share(interpreter: Any) -> float:
    """Share 0..1 of the multiply-adds that XNNPACK computes.

    The list of operations holds those that were delegated as well.  The ones that run are found
    from the output backwards, where the result of a delegate hides the operations in it.
    """
    shapes = {each["index"]: each["shape"] for each in interpreter.get_tensor_details()}
    operations = interpreter._get_ops_details()
    makers: dict[int, Any] = {}
    for operation in sorted(operations, key=lambda each: each["op_name"] == "DELEGATE"):
        makers.update(dict.fromkeys(map(int, operation["outputs"]), operation))
    running: dict[int, Any] = {}
    wanted = [each["index"] for each in interpreter.get_output_details()]
    while wanted:
        operation = makers.get(wanted.pop())
        if operation is not None and operation["index"] not in running:
            running[operation["index"]] = operation
            wanted += map(int, operation["inputs"])

    def multiply_adds(operation: Any) -> int:
        """Cells of the result times values summed in each; 0 unless it convolves or multiplies."""
        inputs, result = operation["inputs"], operation["outputs"][0]
        match operation["op_name"]:
            case "CONV_2D" | "FULLY_CONNECTED":  # weights (out, ..., in)
                return prod(map(int, shapes[result])) * prod(map(int, shapes[inputs[1]][1:]))
            case "DEPTHWISE_CONV_2D":  # weights (1, rows, columns, channels)
                return prod(map(int, shapes[result])) * prod(map(int, shapes[inputs[1]][1:3]))
            case "BATCH_MATMUL":
                return prod(map(int, shapes[result])) * int(shapes[inputs[0]][-1])
        return 0

    total = sum(map(multiply_adds, operations))
    return 1 - sum(map(multiply_adds, running.values())) / total


FORMAT = LitertFormat()
