"""Check a portable program of `torch.export` before PyTorch reads it.

`torch.export.load` runs what a file says: it falls back to a full unpickler where the
restricted one refuses (weights, constants, sample inputs), evaluates size expressions and
guards as Python, looks operators up by any path below `torch` (`torch.os.system` among them),
pastes names into generated Python code, and loads compiled libraries from the same archive.

So a new archive is built in memory from the checked parts of the file:

- members with known names, stored without compression, with right checksums;
- tensors and sample inputs, read by the restricted unpickler and pickled again;
- the graph: every text in it is a plain dotted name, every operator is one that networks of
  this package use, every size expression is arithmetic on sizes; guards and metadata (traces
  and module names, for people) are left out.

Everything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgrseg.errors import WeightsError
from cgrseg.models.checkpoint_files import refused_global

# Names below the archive's folder: those of PyTorch 2.8 and newer, then those of 2.6 and 2.7.
_GRAPHS = ("models/model.json", "serialized_exported_program.json")
_CONFIGS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_PICKLES = (
    "data/sample_inputs/model.pt",
    "data/weights/model.pt",
    "data/constants/model.pt",
    "serialized_state_dict.pt",
    "serialized_constants.pt",
    "serialized_example_inputs.pt",
)
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|(extra|extra_files)/[\w.-]+"
)
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators that compute on tensors and touch nothing else.
_ATEN = _words(
    """
    __and__ __or__ _adaptive_avg_pool2d _assert_async _assert_scalar _assert_tensor_metadata
    _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view abs
    adaptive_avg_pool2d add add_ addmm alias all amax amin any arange argmax avg_pool2d
    baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm cat ceil chunk clamp clamp_max
    clamp_min clone concat constant_pad_nd contiguous conv2d convolution cumsum detach detach_
    div div_ dropout einsum empty eq erf exp expand expand_as flatten floor floor_divide full
    full_like ge gelu gt hardsigmoid hardswish hardtanh index index_select interpolate item
    layer_norm le leaky_relu lift_fresh lift_fresh_copy linear log log_softmax logical_and
    logical_not logical_or lt masked_fill matmul max maximum mean min minimum mm movedim mul
    mul_ native_layer_norm ne neg new_ones new_zeros numpy_T ones ones_like pad permute pow
    reciprocal relu relu_ relu6 remainder repeat reshape round rsqrt rsub scalar_tensor select
    sigmoid silu size slice softmax split split_with_sizes sqrt squeeze stack sub sub_ sum
    sym_constrain_range sym_constrain_range_for_size sym_numel sym_size sym_stride t tanh to
    transpose type_as unbind unflatten unsqueeze unsqueeze_ upsample_bicubic2d
    upsample_bilinear2d upsample_nearest2d var var_mean view view_as where zeros zeros_like
    """
)
_NUMBERS = _words(
    """
    _operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge
    _operator.getitem _operator.gt _operator.le _operator.lt _operator.mod _operator.mul
    _operator.ne _operator.neg _operator.sub _operator.truediv math.ceil math.floor math.trunc
    torch.sym_float torch.sym_int torch.sym_ite torch.sym_max torch.sym_min torch.sym_not
    """
)
# Functions of size expressions: sympy's own and those of `torch.utils._sympy.functions`.
_FUNCTIONS = _words(
    """
    Abs Add And CeilDiv CeilToInt CleanDiv Eq FloatTrueDiv FloorDiv FloorToInt Ge GreaterThan
    Gt Identity IntTrueDiv Integer Le LessThan Lt Max Min Mod ModularIndexing Mul Ne Not Or
    Piecewise Pow PowByNatural PythonMod Rational StrictGreaterThan StrictLessThan ToFloat
    TruncToFloat TruncToInt Where ceiling floor
    """
)
_ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd),
    *(ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Load),
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*|")
_SYMBOL = re.compile(r"[a-z]{1,2}\d{1,6}")
_FLOATS = ("Infinity", "-Infinity", "NaN")
_LONGEST_EXPRESSION = 10_000
_LARGEST_NUMBER = 1 << 62
_LARGEST_POWER = 4
# Kinds of values with code or objects of their own.
_FORBIDDEN = ("as_graph", "as_custom_obj", "as_operator", "custom_obj", "as_string_to_argument")
_LEFT_OUT: Mapping[str, type] = {
    "metadata": dict,
    "guards_code": list,
    "treespec_namedtuple_fields": dict,
}


class _Refused(Exception):
    """A part of the file that no portable program of this package has."""


def checked_program(path: Path) -> io.BytesIO:
    """A portable program as a new archive of checked parts, for `torch.export.load`.

    Raises:
        WeightsError: a damaged file, or one that holds something else; nothing of it was run.
    """
    try:
        root, members = _members(path)
        return _rebuilt(root, members)
    except Exception as error:  # damaged bytes can fail in any of a dozen ways
        reason = str(error) if isinstance(error, _Refused) else f"{type(error).__name__}: {error}"
        raise WeightsError(
            path,
            found=f"not a portable program as cgrseg export writes it ({reason[:300]}); nothing "
            "of it was run",
            expected="tensors, and a graph of the operators that CGRSeg uses",
            remedy="the file is damaged or foreign: copy it again, or export it again: "
            "cgrseg export CHECKPOINT --format pt2",
        ) from error


def _members(path: Path) -> tuple[str, dict[str, bytes]]:
    """The archive's folder (empty in PyTorch 2.6 and 2.7), and its members by name below it."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            raise _Refused("two members of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Refused("a compressed member")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise _Refused("members larger than the file")
        root = "" if _GRAPHS[1] in names else f"{names[0].partition('/')[0]}/" if names else ""
        members = {}
        for name in names:
            below = name[len(root) :]
            known = below in (*_GRAPHS, *_CONFIGS, *_PICKLES) or _TENSORS.fullmatch(below)
            if not (name.startswith(root) and (known or _PLAIN.fullmatch(below))):
                raise _Refused(f"the member {name!r}")
            members[below] = archive.read(name)  # compares the checksum
    return root, members


def _rebuilt(root: str, members: Mapping[str, bytes]) -> io.BytesIO:
    if sum(name in members for name in _GRAPHS) != 1:
        raise _Refused("no graph")
    # Tensors lie in files as raw bytes, except those that a config says are pickles.
    fresh = dict(members)
    for name, content in members.items():
        if name in _GRAPHS:
            program = json.loads(content)
            _check(program, "program")
            fresh[name] = json.dumps(program).encode()
        elif name in _PICKLES:
            fresh[name] = _repickled(content)
        elif name in _CONFIGS:
            config = json.loads(content)
            _check(config, "config")
            folder = name.rpartition("/")[0]
            for entry in config["config"].values():
                member = f"{folder}/{entry['path_name']}"
                if not _TENSORS.fullmatch(member):
                    raise _Refused(f"tensors in {member!r}")
                if entry["use_pickle"] is not False:
                    fresh[member] = _repickled(members[member])
            fresh[name] = json.dumps(config).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in fresh.items():
            archive.writestr(f"{root}{name}", content)
    buffer.seek(0)
    return buffer


def _repickled(pickled: bytes) -> bytes:
    """Read tensors in plain containers by the restricted unpickler, and pickle them again."""
    if not pickled:
        return pickled
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
        culprit = refused_global(str(error))
        held = f" that holds `{culprit}`" if culprit else ""
        raise _Refused(f"a pickle of other than tensors{held}") from error
    _check_plain(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _check_plain(value: Any) -> None:
    if type(value) in (dict, tuple, list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item)
        if isinstance(value, dict) and not all(type(key) is str for key in value):
            raise _Refused("a table whose keys are not text")
    elif not (type(value) in (Tensor, torch.nn.Parameter, bool, int, float, str) or value is None):
        raise _Refused(f"a value of type {type(value).__name__}")


def _check(value: Any, key: str) -> None:
    """Refuse everything that PyTorch could run; remove what it does not need."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _FORBIDDEN and item is not None:
                raise _Refused(f"a value of kind {name}")
            if name in _LEFT_OUT:
                value[name] = _LEFT_OUT[name]()
            elif key == "range_constraints":
                _check_expression(name)
                _check(item, name)
            else:
                _check_name(name)
                _check(item, name)
    elif isinstance(value, list):
        for item in value:
            _check(item, key)
    elif isinstance(value, str):
        _check_text(value, key)
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise _Refused(f"the number {str(value)[:30]}")


def _check_text(text: str, key: str) -> None:
    if key == "target":
        parts = text.split(".")
        aten = len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"] and parts[3] in _ATEN
        if not aten and text not in _NUMBERS:
            raise _Refused(f"the operator {text[:100]!r}")
        _check_name(text)
    elif key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_structure(json.loads(text))
    elif key == "torch_version":
        if not re.fullmatch(r"[\w.+<=]*", text):
            raise _Refused(f"the version {text[:60]!r}")
    elif text not in _FLOATS:
        _check_name(text)
        if key in ("name", "as_name") and ("." in text or iskeyword(text)):
            raise _Refused(f"the name {text[:100]!r}")  # a variable of generated code


def _check_name(text: str) -> None:
    """Names become Python code: only plain ones, and none of Python's own attributes."""
    if len(text) > 500 or not _NAME.fullmatch(text):
        raise _Refused(f"the name {text[:100]!r}")
    for part in text.split("."):
        if part.startswith("__") and part not in ("__and__", "__or__"):
            raise _Refused(f"the name {text[:100]!r}")


def _check_structure(spec: Any) -> None:
    """Nesting of inputs and outputs: tuples, lists and dictionaries with plain keys."""
    if isinstance(spec, list):
        for item in spec:
            _check_structure(item)
    elif isinstance(spec, dict):
        kind, context = spec.get("type"), spec.get("context")
        if kind not in (None, "builtins.tuple", "builtins.list", "builtins.dict"):
            raise _Refused(f"an input of type {str(kind)[:60]!r}")
        if context is not None and not re.fullmatch(r'null|\[("\w+"(, "\w+")*)?\]', str(context)):
            raise _Refused(f"an input of the form {str(context)[:60]!r}")
        if set(spec) != {"type", "context", "children_spec"}:
            raise _Refused("an input of another form")
        _check_structure(spec["children_spec"])
    elif type(spec) is not int:
        raise _Refused("an input of another form")


def _check_expression(text: str) -> None:
    """A size expression is arithmetic on sizes: sympy evaluates it as Python."""
    if len(text) > _LONGEST_EXPRESSION:
        raise _Refused("a size expression without end")
    _check_arithmetic(ast.parse(text, mode="eval"))


def _check_arithmetic(node: ast.AST) -> None:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "Symbol":
            named = len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
            text = node.args[0].value if named else None  # type: ignore[attr-defined]
            if not isinstance(text, str) or not _SYMBOL.fullmatch(text):
                raise _Refused("a size expression with another symbol")
            for keyword in node.keywords:
                if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is True):
                    raise _Refused("a size expression with another symbol")
            return
        if name not in _FUNCTIONS or node.keywords:
            raise _Refused(f"a size expression that calls {ast.unparse(node.func)[:60]!r}")
        if name.startswith("Pow"):
            _check_power(node.args)
        for argument in node.args:
            _check_arithmetic(argument)
    elif isinstance(node, ast.Name):
        if not _SYMBOL.fullmatch(node.id):
            raise _Refused(f"a size expression with the name {node.id[:60]!r}")
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, (int, float)) or abs(node.value) > _LARGEST_NUMBER:
            raise _Refused("a size expression with another value")
    elif isinstance(node, _ARITHMETIC):
        for child in ast.iter_child_nodes(node):
            _check_arithmetic(child)
    else:
        raise _Refused(f"a size expression with {type(node).__name__}")


def _check_power(arguments: list[ast.expr]) -> None:
    """Only small whole numbers as exponents: others would compute for ever."""
    power = arguments[1] if len(arguments) == 2 else None
    if isinstance(power, ast.Call) and len(power.args) == 1:
        power = power.args[0]  # Integer(2)
    value = power.value if isinstance(power, ast.Constant) else None
    if not isinstance(value, int) or not 0 <= value <= _LARGEST_POWER:
        raise _Refused("a size expression with a large power")
