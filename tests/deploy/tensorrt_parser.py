"""What TensorRT's parser takes of an ONNX file; TensorRT itself is not run here.

Operators and restrictions are those of `docs/operators.md` of onnx/onnx-tensorrt, release 10.1.
"""

from __future__ import annotations

from typing import Any

OPSETS = range(9, 21)
_LISTED = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool
    BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout
    Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND
    Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization GRU HardSigmoid HardSwish Hardmax Identity If ImageScaler
    InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or
    Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike
    RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile
    TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_LISTED.split())
_NEED_STORED_AXES = (
    *("ReduceMax", "ReduceMean", "ReduceSum", "Squeeze", "Unsqueeze", "Slice", "Pad"),
)


def refused(model: Any) -> set[str]:
    """What the parser does not take of an `onnx.ModelProto`, in words."""
    import onnx

    found = {f"opset {each.version}" for each in model.opset_import if each.version not in OPSETS}
    stored = {tensor.name for tensor in model.graph.initializer}
    source, target = model.graph.input[0], model.graph.output[0]
    for node in model.graph.node:
        about = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type not in OPERATORS or node.domain:
            found.add(f"operator {node.domain}{node.op_type}")
        if node.op_type in _NEED_STORED_AXES and node.input[-1] not in stored:
            found.add(f"axes of {node.op_type}")
        if node.op_type == "LayerNormalization" and len(node.output) > 1:
            found.add("outputs of LayerNormalization")
        if node.op_type == "AveragePool" and set(about.get("dilations", [1])) != {1}:
            found.add("dilated AveragePool")
        if node.op_type == "Resize":
            if about["mode"] not in (b"linear", b"nearest"):
                found.add(f"Resize, {about['mode'].decode()}")
            if about.get("antialias") or about.get("axes"):
                found.add("Resize, options")
        # 8-bit integers are for input and output alone.
        bits = source.type.tensor_type.elem_type
        if source.name in node.input and bits == onnx.TensorProto.UINT8 and node.op_type != "Cast":
            found.add(f"{node.op_type} of 8 bits")
        if about.get("to") == onnx.TensorProto.UINT8 and list(node.output) != [target.name]:
            found.add("Cast to 8 bits inside")
    return found
