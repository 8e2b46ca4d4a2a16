"""Error messages of the package, read from its source.

A message is a call with `found=`, `expected=` and `remedy=`. A part that is filled in at run time
is shown as an ellipsis. Constants, alternatives of a variable and the arguments of helper
functions of the same module are followed, so that the words of a message are complete.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HOLE = "…"
PARTS = ("found", "expected", "remedy")
_MOST = 12
"""Maximum number of alternatives of a part; the others are not listed."""


@dataclass(frozen=True)
class Message:
    """An error message.

    Attributes:
        file: source file below `cgrseg/`.
        line: line of the call.
        kind: name of the called error class or function.
        where: alternatives of the file, setting or object that the message names.
        found: words of the part "found".
        expected: alternatives of the part "expected".
        remedy: alternatives of the part "what to do".
    """

    file: str
    line: int
    kind: str
    where: tuple[str, ...]
    found: str
    expected: tuple[str, ...]
    remedy: tuple[str, ...]


def collect(package: Path) -> list[Message]:
    """All messages of a package, by file and line."""
    found: dict[tuple[str, int, str], Message] = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name != "errors.py":  # composes messages, has none of its own to show
            for each in _Module(ast.parse(path.read_text(encoding="utf-8")), name).messages():
                key = (each.file, each.line, each.found)
                old = found.get(key, each)
                merged = {
                    part: _unique((*getattr(old, part), *getattr(each, part)))
                    for part in ("where", "expected", "remedy")
                }
                found[key] = Message(each.file, each.line, each.kind, found=each.found, **merged)
    return list(found.values())


def called_name(call: ast.Call) -> str:
    """Name of the called function or class, without the object before the dot."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _unique(texts: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    kept = dict.fromkeys(texts)
    if any(_has_words(text) for text in kept):
        kept = {text: None for text in kept if _has_words(text)}
    return tuple(kept)


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


class _Module:
    def __init__(self, tree: ast.Module, file: str) -> None:
        self.file = file
        self.calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self.constants = {name: value for _, name, value in _assignments(tree.body)}
        self.function_of: dict[int, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        for node in ast.walk(tree):  # outer functions first, so the innermost one stays
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.function_of.update((id(each), node) for each in ast.walk(node))

    def messages(self) -> Iterator[Message]:
        for call in self.calls:
            given = {each.arg: each.value for each in call.keywords if each.arg in PARTS}
            if len(given) < len(PARTS) or not call.args:
                continue
            function = self.function_of.get(id(call))
            local = list(self._variables(function)) if function else []
            name = getattr(given["found"], "id", None)
            blocks = {block: None for block, target, _ in local if target == name} or {None: None}
            for arguments, block in product(self._arguments(function), blocks):
                scope = dict(arguments)
                for target in {target for _, target, _ in local}:
                    here = [v for b, t, v in local if t == target and b == block]
                    scope[target] = here or [v for _, t, v in local if t == target]
                where, found, expected, remedy = (
                    _unique(self._read(node, scope))
                    for node in (call.args[0], *(given[part] for part in PARTS))
                )
                passed_on = all(getattr(given[part], "id", None) == part for part in PARTS)
                for words in found:
                    if words and (_has_words(words) or not passed_on):
                        yield Message(
                            self.file,
                            call.lineno,
                            called_name(call),
                            where,
                            words,
                            expected,
                            remedy,
                        )

    def _variables(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef
    ) -> Iterator[tuple[object, str, ast.expr]]:
        """Block, name and value of each assignment; each row of a table is a block of its own."""
        for block, name, value in _assignments(function.body):
            if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant):
                for number, row in enumerate(self._rows(value.value)):
                    yield (block, number), name, ast.Subscript(row, value.slice, ast.Load())
            else:
                yield block, name, value

    def _arguments(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef | None
    ) -> list[dict[str, list[ast.expr]]]:
        """Arguments of a function in each call of this module; one empty set without calls."""
        if function is None:
            return [{}]
        names = [each.arg for each in function.args.args if each.arg not in ("self", "cls")]
        return [
            {name: [value] for name, value in zip(names, call.args, strict=False)}
            | {each.arg: [each.value] for each in call.keywords if each.arg}
            for call in self.calls
            if called_name(call) == function.name
        ] or [{}]

    def _read(self, node: ast.expr, scope: dict[str, list[ast.expr]]) -> list[str]:
        """Alternatives of a text."""
        texts = [HOLE]
        if isinstance(node, ast.Constant):
            texts = [str(node.value)]
        elif isinstance(node, ast.JoinedStr):
            parts = [self._read(each, scope) for each in node.values]
            texts = ["".join(each) for each in product(*(part[:3] for part in parts))]
        elif isinstance(node, ast.FormattedValue):
            inner = node.value
            known = isinstance(inner, (ast.IfExp, ast.Call)) or (
                isinstance(inner, ast.Name) and inner.id in self.constants
            )
            texts = self._read(inner, scope) if known else [HOLE]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = product(self._read(node.left, scope), self._read(node.right, scope))
            texts = [left + right for left, right in pairs]
        elif isinstance(node, ast.IfExp):
            texts = self._read(node.body, scope) + self._read(node.orelse, scope)
        elif isinstance(node, ast.Name) and node.id in scope:
            # A variable of the caller has the same name at times: it is not followed twice.
            rest = {name: values for name, values in scope.items() if name != node.id}
            texts = [text for value in scope[node.id] for text in self._read(value, rest)]
        elif isinstance(node, ast.Name) and node.id in self.constants:
            value = self.constants[node.id]
            texts = self._read(value, {}) if not isinstance(value, ast.Name) else [HOLE]
        elif isinstance(node, ast.Call) and called_name(node) == "option" and node.args:
            texts = self._read(node.args[0], {})
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            texts = [t for each in self._rows(node.value) for t in self._item(each, node, scope)]
        return texts[:_MOST] or [HOLE]

    def _item(
        self, row: ast.expr, node: ast.Subscript, scope: dict[str, list[ast.expr]]
    ) -> list[str]:
        number = getattr(node.slice, "value", None)
        if isinstance(row, ast.Tuple) and isinstance(number, int) and number < len(row.elts):
            return self._read(row.elts[number], scope)
        return []

    def _rows(self, node: ast.expr) -> list[ast.expr]:
        """Values that `TABLE.get(key, default)` can give, or a value itself."""
        if isinstance(node, ast.Call) and called_name(node) == "get":
            table = self.constants.get(getattr(getattr(node.func, "value", None), "id", ""))
            return [*(table.values if isinstance(table, ast.Dict) else []), *node.args[1:]]
        return [node]


def _assignments(body: list[ast.stmt]) -> Iterator[tuple[int, str, ast.expr]]:
    """Block, name and value of each assignment, those of nested blocks included."""
    for statement in body:
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign):
            targets, value = [statement.target], statement.value
        for target in targets:
            if value is None:  # an annotation alone
                continue
            if isinstance(target, ast.Name):
                yield id(body), target.id, value
            elif isinstance(target, ast.Tuple):
                for number, each in enumerate(target.elts):
                    if isinstance(each, ast.Name):
                        item = ast.Subscript(value, ast.Constant(number), ast.Load())
                        yield id(body), each.id, item
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from _assignments(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _assignments(handler.body)
