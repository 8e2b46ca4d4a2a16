"""What remedies name, read from the source: options, settings, commands, extras.

A text counts when it can reach a person: every string of the package but docstrings, help texts
of options, and the names that settings have in other tools.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOLS = tuple(
    f"data convert {name}"
    for name in (
        *(
            "ade20k-full",
            "camvid",
            "cityscapes",
            "coco-panoptic",
            "cvat",
            "datumaro-masks",
            "kitti",
        ),
        *("label-studio", "mapillary", "roboflow", "supervisely", "via", "voc", "yolo"),
    )
)
CONVERTERS = (
    *("data convert coco", "data convert coco-stuff10k", "data convert labelme"),
    *("data convert mat", "data convert pascal-context", "data convert rgb"),
)
SCRIPTS = ("run_cgrseg.py", "tools/train.py", "tools/test.py")
READING_DATA = ("train", "evaluate", "report", "export", "data check", "data browse", *SCRIPTS)

# Source file or folder to the commands and scripts in which its messages can appear.  The first
# entry that fits counts.  Texts that name a whole command (`cgrseg export ... --size`) need none.
CONTEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("cli/autolabel.py", ("autolabel",)),
    ("cli/bench.py", ("bench",)),
    ("cli/common.py", ("evaluate", "predict")),
    ("cli/data_convert.py", CONVERTERS),
    ("cli/data_fetch.py", ("data fetch",)),
    ("cli/data.py", ("data check", "data browse")),
    ("cli/demo.py", ("demo",)),
    ("cli/evaluate.py", ("evaluate",)),
    ("cli/export.py", ("export",)),
    ("cli/info.py", ("info",)),
    ("cli/predict.py", ("predict",)),
    ("cli/report.py", ("report",)),
    ("cli/train.py", ("train",)),
    ("cli/web.py", ("web",)),
    ("training/single_gpu.py", ("run_cgrseg.py",)),
    ("training/train_script.py", ("tools/train.py",)),
    ("files.py", ("train", "run_cgrseg.py", "tools/train.py")),
    ("inference/annotation_files.py", ("predict",)),
    ("inference/records.py", ("predict",)),
    ("training", ("train", "run_cgrseg.py", "tools/train.py")),
    ("evaluation/eval_script.py", ("tools/test.py",)),
    ("evaluation/outputs.py", ("evaluate", "tools/test.py")),
    ("evaluation", ("evaluate", "run_cgrseg.py", "tools/test.py")),
    ("data/convert/formats/labelme.py", ("data convert labelme",)),
    ("data/convert/formats/huggingface.py", ("data convert huggingface",)),
    ("data/convert/formats/pascal_context.py", ("data convert pascal-context",)),
    ("data/convert/formats/rgb.py", ("data convert rgb",)),
    ("data/convert/formats/coco_panoptic.py", ("data convert coco-panoptic",)),
    ("data/convert/formats/mapillary.py", ("data convert mapillary",)),
    ("data/convert/formats/via.py", ("data convert via",)),
    ("data/convert/formats/raster.py", ("data convert raster",)),
    ("data/convert/formats/yolo.py", ("data convert yolo",)),
    ("data/convert/tool_format.py", TOOLS),
    ("data/convert/regions.py", TOOLS),
    ("data/convert/custom_format.py", ("data convert labelme",)),
    ("data/convert/matlab.py", ("data convert mat",)),
    ("data/convert/formats/mat.py", ("data convert mat",)),
    ("data/convert", CONVERTERS),
    ("data/fetch", ("data fetch",)),
    ("data/guess.py", ("data check", "data browse")),
    ("data/browse.py", ("data browse",)),
    ("data/synthetic", ("data synth",)),
    ("data", READING_DATA),
    ("deploy/web", ("web",)),
    ("deploy", ("export",)),
    ("publishing", ("publish",)),
    ("hub.py", ("publish",)),
    ("inference/autolabel.py", ("autolabel",)),
    ("inference/raster.py", ("predict",)),
    ("inference/ray_engine.py", ("predict",)),
    ("inference/results.py", ("predict",)),
    ("inference/ready_backend.py", ("predict",)),
    ("reporting/ranking_page.py", ("data rank",)),
    ("formats", ("predict", "bench", "web")),
    ("bench", ("bench",)),
)

_COMMAND = r"cgrseg ((?:data convert|data) [a-z][a-z0-9-]*|[a-z]+)(?![\w.])"
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_SETTING = re.compile(
    r"(?<![\w./])((?:model|data|augment|test|optimizer|schedule|loss|train)(?:\.[a-z_]+)+)(=[^\s;,)`]+)?"
)
# Of `docker run` and of every command.
_OTHERS = ("--shm-size", "--help")
_FILE_ENDINGS = (
    "txt",
    "py",
    "json",
    "pt",
    "safetensors",
    "edu",
    "log",
    "csail",
    "yaml",
    "yml",
    "tflite",
)


@dataclass(frozen=True)
class Text:
    """A text of the package.

    Attributes:
        file: below `cgrseg/`.
        line: in it.
        words: the text; what is filled in stands as `{}`.
    """

    file: str
    line: int
    words: str

    @property
    def commands(self) -> list[str]:
        """Commands that it names, e.g. `data check`."""
        return re.findall(_COMMAND, self.words)

    @property
    def options(self) -> list[tuple[str, str | None]]:
        """Options that it names, each with the command before it in the same clause, if any."""
        found = []
        for clause in re.split(r"; |, or (?=cgrseg)", self.words):
            commands = list(re.finditer(_COMMAND, clause))
            for option in _OPTION.finditer(clause):
                before = [each[1] for each in commands if each.start() < option.start()]
                if option[0] not in _OTHERS:
                    found.append((option[0], before[-1] if before else None))
        return found

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Settings that it names, each with `=value` or nothing."""
        return [
            (name, value)
            for name, value in _SETTING.findall(self.words)
            if name.rpartition(".")[2] not in _FILE_ENDINGS
        ]

    @property
    def context(self) -> tuple[str, ...]:
        """Commands and scripts in which it can appear; empty when it is not said."""
        for place, commands in CONTEXTS:
            if self.file == place or self.file.startswith(f"{place}/"):
                return commands
        return ()


def texts(package: Path) -> Iterator[Text]:
    """Every text of the package that can reach a person."""
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        aside = _aside(tree, name)
        for node in ast.walk(tree):
            if id(node) not in aside and isinstance(node, (ast.Constant, ast.JoinedStr)):
                words = _words(node)
                if words:
                    yield Text(name, node.lineno, words)


def spoken_options(package: Path) -> Iterator[tuple[Text, str]]:
    """Options that messages spell as the front end does: `option("--resume")`."""
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option":
                (first, *_) = node.args
                assert isinstance(first, ast.Constant), path
                name = path.relative_to(package).as_posix()
                yield Text(name, node.lineno, str(first.value)), str(first.value)


def _words(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = node.values
    return "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)


def _aside(tree: ast.AST, file: str) -> set[int]:
    """Nodes that are no messages: docstrings, help texts, parts of a longer text."""
    found: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            found |= {id(each.value) for each in body if isinstance(each, ast.Expr)}
        if isinstance(node, ast.JoinedStr):
            found |= {id(each) for each in ast.walk(node) if each is not node}
        name = getattr(getattr(node, "func", None), "attr", getattr(node, "func", None))
        named = name if isinstance(name, str) else getattr(name, "id", "")
        if named in ("add_argument", "Option", "Argument", "Field", "option") or (
            named.endswith(("_option", "_argument", "_flags_of_mmsegmentation"))
        ):
            found |= {id(each) for each in ast.walk(node)}
    if file in (
        "config/suggestions.py",
        "config/flags.py",
        "cli/common.py",
    ):  # names of other tools, old names
        found |= {
            id(each)
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict)
            or getattr(node, "name", "") in ("present_names", "with_compile_value")
            for each in ast.walk(node)
        }
    if file == "config/mmseg.py":  # names of mmsegmentation, except in what `refuse` says
        told = {
            id(each)
            for node in ast.walk(tree)
            if getattr(node, "name", "") in ("refuse", "notes")
            for each in ast.walk(node)
        }
        found |= {id(each) for each in ast.walk(tree)} - told
    if file in ("cli/options.py", "cli/reference.py", "errors.py"):
        found |= {
            id(each)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Dict, ast.FunctionDef))
            for each in ast.walk(node)
        }
    return found
