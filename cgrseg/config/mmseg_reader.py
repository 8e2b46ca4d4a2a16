"""Read a config in the form of mmsegmentation 0.x or 1.x, without running it.

A Python file is parsed, and literals, `dict(...)`, names, arithmetic and subscripts are evaluated
here.  Any other expression is reported with its line, and nothing of the file is executed.
The merging of `_base_` files follows mmcv's and mmengine's `Config.fromfile`.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgrseg.config.presets import list_presets
from cgrseg.errors import ConfigError
from cgrseg.input_files import read_input_text

_NAMES_1X = frozenset(
    {"train_dataloader", "optim_wrapper", "param_scheduler", "default_hooks", "val_evaluator"}
    | {"train_cfg", "test_dataloader", "val_dataloader", "test_evaluator", "default_scope"}
)
_NAMES = _NAMES_1X | {
    *("_base_", "lr_config", "runner", "optimizer_config", "checkpoint_config", "evaluation"),
    *("log_config", "dataset_type", "train_pipeline", "norm_cfg"),
}
_PRESET = "_preset_"

DATASET_FILES = {
    "ade20k": "ADE20KDataset",
    "coco-stuff10k": "COCOStuffDataset",
    "coco-stuff164k": "COCOStuffDataset",
    "pascal_context_59": "PascalContextDataset59",
    "pascal_context": "PascalContextDataset",
    "cityscapes": "CityscapesDataset",
    "pascal_voc12": "PascalVOCDataset",
}
"""Name of a file in mmsegmentation's `_base_/datasets` to the dataset class that it names."""

_MAX_STEPS = 200_000  # evaluated expressions, and entries that one expression may make
_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_REFERENCE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")


@dataclass
class Tree:
    """Content of a config file, merged with its `_base_` files.

    Attributes:
        values: settings by name, nested.
        not_understood: `FILE, line N: text` of every expression that was not evaluated.
        assumed: what stands for `_base_` files that are not there, in words.
    """

    values: dict[str, Any] = field(default_factory=dict)
    not_understood: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """'1.x' or '0.x', by the names of the settings."""
        return "1.x" if _NAMES_1X & self.values.keys() else "0.x"


def is_mmseg_file(path: Path) -> bool:
    """Whether a file has the form of mmsegmentation's configs, and not of ours.

    A Python file of ours binds `config`.  A file that cannot be read or parsed is not recognized.
    """
    if path.suffix not in (".py", ".json", ".yaml", ".yml"):
        return False
    try:
        text = read_input_text(path)
        if path.suffix != ".py":
            values = json.loads(text) if path.suffix == ".json" else _load_yaml(text)
            return isinstance(values, dict) and _has_their_names(values)
        body = ast.parse(text).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    bound: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        bound |= {
            name.id
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
    if bound & {"config", "*"}:
        return False
    return _has_their_names(dict.fromkeys(bound)) or any(map(_reads_base, body))


def _has_their_names(values: Mapping[str, Any]) -> bool:
    if values.keys() & {"schedule", "augment"}:
        return False
    parts: set[str] = set()
    for section in (values.get("model"), values.get("data")):
        parts |= set(section) if isinstance(section, Mapping) else set()
    return bool(values.keys() & _NAMES or parts & {"backbone", "decode_head", "samples_per_gpu"})


def read_mmseg(path: Path) -> Tree:
    """Read a `.py`, `.json`, `.yaml` or `.yml` file and its `_base_` files.

    Raises:
        ConfigError: the file or a `_base_` file cannot be read, is a lazily typed config
            (`with read_base():`), or is among its own `_base_` files.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> Tree:
    if path.resolve() in above:
        raise ConfigError(
            path,
            found="the file is among its own _base_ files",
            expected="_base_ files that do not lead back: "
            + " -> ".join(each.name for each in (*above, path)),
            remedy="remove one of these entries of _base_",
        )
    tree = Tree()
    own = _own_values(path, tree, above)
    own.pop("_base_", None)
    tree.values = _merged(tree.values, own)
    return tree


def _own_values(path: Path, tree: Tree, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        text = read_input_text(path)
        if path.suffix == ".py":
            return _Evaluator(path, tree, (*above, path.resolve())).run(ast.parse(text))
        values = json.loads(text) if path.suffix == ".json" else _load_yaml(text)
        if not isinstance(values, dict):
            raise ValueError(f"the outermost value is {type(values).__name__}")
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(
            path,
            found=f"it cannot be read ({getattr(error, 'strerror', None) or error})",
            expected="a config of mmsegmentation: .py, .json or .yaml",
            remedy="correct it, or give the config that a run of mmsegmentation wrote into its "
            "work_dir",
        ) from error
    _add_bases(path, tree, (*above, path.resolve()), values.get("_base_"))
    return values


def _load_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """The safe loader, and the tuples that mmengine writes."""

    Loader.add_constructor(
        "tag:yaml.org,2002:python/tuple",
        lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
    )
    try:
        value = yaml.load(text, Loader)
        if _size(value) > _MAX_STEPS:
            raise ValueError(f"it stands for more than {_MAX_STEPS} values and characters")
        return value
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _add_bases(path: Path, tree: Tree, above: tuple[Path, ...], bases: Any) -> None:
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, (list, tuple)):
        return
    for name in names:
        base = path.parent / str(name)
        if not base.exists():
            values, assumed = _stand_in(path, str(name))
            tree.assumed.append(assumed)
        else:
            read = _read(base, above)
            values = read.values
            tree.not_understood += read.not_understood
            tree.assumed += read.assumed
        tree.values = _merged(tree.values, values)


def _stand_in(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """What the name of a `_base_` file says when the file is not there."""
    base = Path(name.rpartition("::")[2])
    kind, stem = base.parent.name, base.stem
    missing = f"{name} is not there: "
    if stem in list_presets():
        return {_PRESET: stem}, f"{missing}the preset {stem} stands for it"
    dataset = next((d for d in sorted(DATASET_FILES, reverse=True) if stem.startswith(d)), None)
    if kind == "datasets" and dataset is not None:
        values = {"dataset_type": DATASET_FILES[dataset], "_dataset_file_": stem}
        return values, f"{missing}its name says {values['dataset_type']}; the rest is the preset's"
    length = re.fullmatch(r"schedule_(\d+)k", stem)
    if length is not None:
        iterations = 1000 * int(length[1])
        return {"_max_iters_": iterations}, (
            f"{missing}its name says {iterations} iterations; the rest is the preset's"
        )
    if stem == "default_runtime":
        return {}, f"{missing}the preset's settings stand for it"
    if kind == "models":
        return {"model": {"type": stem}}, f"{missing}its name says the network {stem}"
    raise ConfigError(
        f"{path}: _base_",
        found=f"{name} is not there",
        expected=f"the file {path.parent / name}",
        remedy="put the file beside it, or give the config that a run of mmsegmentation wrote into "
        "its work_dir: it holds everything",
    )


def _merged(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Own values over those of the base; `_delete_=True` in a table drops the base's."""
    result = dict(base)
    for key, value in own.items():
        if isinstance(value, Mapping):
            below = result.get(key)
            kept = below if isinstance(below, dict) and not value.get("_delete_") else {}
            value = _merged(kept, {k: v for k, v in value.items() if k != "_delete_"})
        result[key] = value
    return result


def _size(value: Any) -> int:
    """Number of values and characters in nested values, up to a little over `_MAX_STEPS`.

    A few lines can stand for billions of values: `b = [a, a]; c = [b, b]; ...`.
    """
    count, pending = 0, [value]
    while pending and count <= _MAX_STEPS:
        count += 1
        inner = pending.pop()
        if isinstance(inner, Mapping):
            pending.extend((*inner, *inner.values()))
        elif isinstance(inner, (list, tuple)):
            pending.extend(inner)
        elif isinstance(inner, str):
            count += len(inner)
    return count


class _NotUnderstood(Exception):
    pass


def _reads_base(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and "read_base" in ast.dump(node.items[0])


class _Evaluator:
    """Evaluates the assignments of one file."""

    def __init__(self, path: Path, tree: Tree, above: tuple[Path, ...]) -> None:
        self._path, self._tree, self._above = path, tree, above
        self._names: dict[str, Any] = {}
        self._steps = 0

    def run(self, module: ast.Module) -> dict[str, Any]:
        # `_base_` may stand below the values that refer to it.
        for node in module.body:
            if isinstance(node, ast.Assign) and "_base_" in map(ast.unparse, node.targets):
                _add_bases(self._path, self._tree, self._above, self._safe(node.value))
        for node in module.body:
            if _reads_base(node):
                raise ConfigError(
                    f"{self._path}, line {node.lineno}",
                    found="a lazily typed config of mmengine (`with read_base():`), which has to "
                    "be run to be read",
                    expected="a config of plain values",
                    remedy='where mmengine is installed, write a plain one: python -c "from '
                    "mmengine.config import Config; Config.fromfile('FILE').dump('plain.py')\"",
                )
            try:
                self._statement(node)
            except (_NotUnderstood, LookupError, TypeError, ValueError):
                self._note(node)
        return {k: v for k, v in self._names.items() if v is not _UNKNOWN}

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self._safe(node.value))
        elif isinstance(node, ast.Assign):
            value = self._safe(node.value)
            for target in node.targets:
                self._assign(target, value)
        else:
            raise _NotUnderstood

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] = value
        elif isinstance(target, ast.Subscript):
            self._evaluate(target.value)[self._evaluate(target.slice)] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, (list, tuple)):
            for each, part in zip(target.elts, value, strict=False):
                self._assign(each, part)
        else:
            raise _NotUnderstood

    def _note(self, node: ast.AST) -> None:
        text = " ".join(ast.unparse(node).split())
        shown = text if len(text) <= 60 else text[:57] + "..."
        line = f"{self._path.name}, line {getattr(node, 'lineno', '?')}: {shown}"
        if line not in self._tree.not_understood:
            self._tree.not_understood.append(line)

    def _safe(self, node: ast.expr) -> Any:
        """The value of an expression, or `_UNKNOWN` and a note."""
        try:
            return self._evaluate(node)
        except (_NotUnderstood, LookupError, TypeError, ValueError, ArithmeticError):
            self._note(node)
            return _UNKNOWN

    def _evaluate(self, node: ast.expr) -> Any:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _NotUnderstood
        if isinstance(node, ast.Constant):
            return self._text(node.value) if isinstance(node.value, str) else node.value
        if isinstance(node, ast.Name):
            if node.id not in self._names or self._names[node.id] is _UNKNOWN:
                raise _NotUnderstood
            self._steps += _size(self._names[node.id])
            return self._names[node.id]
        if isinstance(node, ast.List | ast.Tuple):
            parts = [part for part in map(self._safe, node.elts) if part is not _UNKNOWN]
            return tuple(parts) if isinstance(node, ast.Tuple) else parts
        if isinstance(node, ast.Dict):
            keys = [None if key is None else self._evaluate(key) for key in node.keys]
            return self._table(zip(keys, node.values, strict=True))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._call(node, node.func.id)
        if isinstance(node, ast.Subscript):
            return self._evaluate(node.value)[self._evaluate(node.slice)]
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._evaluate(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return self._arithmetic(node)
        if isinstance(node, ast.ListComp):
            return self._comprehension(node)
        if isinstance(node, ast.Set) and isinstance(node.elts[0], ast.Set):  # {{_base_.a.b}}
            return self._text(f"{{{{{ast.unparse(node.elts[0].elts[0])}}}}}")
        raise _NotUnderstood

    def _text(self, text: str) -> Any:
        reference = _REFERENCE.fullmatch(text.strip())
        if reference is not None:
            value: Any = self._tree.values
            for part in reference[1].split("."):
                value = value[part]
            return value
        known = {
            "fileDirname": str(self._path.parent),
            "fileBasename": self._path.name,
            "fileBasenameNoExtension": self._path.stem,
            "fileExtname": self._path.suffix,
        }
        text = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: known.get(m[1], m[0]), text)
        if "{{" in text:
            raise _NotUnderstood
        return text

    def _table(self, entries: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, node in entries:
            value = self._safe(node)
            if value is _UNKNOWN:
                continue
            made.update(value if key is None else {key: value})
        return made

    def _call(self, node: ast.Call, name: str) -> Any:
        if name == "dict":
            made = dict(self._evaluate(node.args[0])) if node.args else {}
            made.update(self._table((each.arg, each.value) for each in node.keywords))
            return made
        if name in ("list", "tuple") and not node.keywords and len(node.args) <= 1:
            value = list(self._evaluate(node.args[0])) if node.args else []
            return tuple(value) if name == "tuple" else value
        raise _NotUnderstood

    def _arithmetic(self, node: ast.BinOp) -> Any:
        left, right = self._evaluate(node.left), self._evaluate(node.right)
        both = (left, right)
        if any(isinstance(each, (str, list, tuple)) for each in both):
            # Longer values come from no config, and would fill the memory.
            size = sum(_size(each) for each in both if isinstance(each, (str, list, tuple)))
            times = next((each for each in both if isinstance(each, int)), 1)
            if size * times > _MAX_STEPS:
                raise _NotUnderstood
        elif any(isinstance(each, int) and abs(each) > 2**63 for each in both):
            raise _NotUnderstood
        return _OPERATORS[type(node.op)](left, right)

    def _comprehension(self, node: ast.ListComp) -> list[Any]:
        (loop,) = node.generators if len(node.generators) == 1 else (None,)
        if loop is None or loop.ifs or not isinstance(loop.target, ast.Name):
            raise _NotUnderstood
        made, before = [], dict(self._names)
        for value in self._evaluate(loop.iter):
            self._names[loop.target.id] = value
            made.append(self._evaluate(node.elt))
        self._names = before
        return made


class _Unknown:
    pass


_UNKNOWN = _Unknown()
