"""A portable program is taken apart before PyTorch reads it: nothing that it brings is run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cgrseg.errors import ConfigError, WeightsError
from cgrseg.formats import open_file
from cgrseg.formats.program_check import checked_program

GRAPH = "archive/models/model.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
SAMPLE = "archive/data/sample_inputs/model.pt"
Members = dict[str, bytes]


class Small(nn.Module):
    """A convolution at any size, and a view whose size is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.convolution(image)
        return found.flatten(2).softmax(1).view(found.shape)


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    side = torch.export.Dim("side", min=2, max=64)
    shapes = {"image": {2: 2 * side, 3: 2 * side}}
    exported = torch.export.export(
        Small().eval(), (torch.rand(1, 3, 16, 16),), dynamic_shapes=shapes
    )
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    description = {
        "kind": "pt2",
        "variant": "cgrseg_t",
        "num_classes": 2,
        **dict.fromkeys(("classes", "palette", "test", "sizes", "batch")),
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "takes": "normalised",
        "gives": "logits",
        "precision": "fp32",
        **dict.fromkeys(("source", "source_digest", "version"), ""),
    }
    content = io.BytesIO()
    torch.export.save(exported, content, extra_files={"cgrseg.json": json.dumps(description)})
    path.write_bytes(content.getvalue())
    return path


def changed(program: Path, out: Path, change: Callable[[Members], Any], **options: Any) -> Path:
    """The archive with other members."""
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out


def in_json(name: str, change: Callable[[Any], Any]) -> Callable[[Members], Any]:
    def apply(members: Members) -> None:
        content = json.loads(members[name])
        change(content)
        members[name] = json.dumps(content).encode()

    return apply


def in_text(name: str, old: str, new: str) -> Callable[[Members], Any]:
    def apply(members: Members) -> None:
        assert old.encode() in members[name]
        members[name] = members[name].replace(old.encode(), new.encode())

    return apply


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickled_weight(members: Members, marker: Path) -> None:
    config = json.loads(members[WEIGHTS])
    entry = config["config"]["convolution.weight"]
    entry["use_pickle"] = True
    members[WEIGHTS] = json.dumps(config).encode()
    members[f"archive/data/weights/{entry['path_name']}"] = saved(Runs(marker))


def opaque_constant(members: Members, marker: Path, kind: str) -> None:
    entry = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members[CONSTANTS] = json.dumps({"config": {"thing": entry}}).encode()
    members[f"archive/data/constants/{kind}_0"] = pickle.dumps(Runs(marker))


def test_a_checked_program_computes_what_the_file_computes(program: Path) -> None:
    image = torch.rand(1, 3, 24, 24)
    expected = torch.export.load(program).module()(image)
    assert torch.equal(torch.export.load(checked_program(program)).module()(image), expected)
    description, run = open_file(program)
    assert description.num_classes == 2
    assert torch.equal(torch.from_numpy(run(image.numpy())), expected)


CODE = "__import__('os').mkdir('MARKER')"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: m.update({SAMPLE: saved((Runs(Path("MARKER")),))}), id="sample"),
        pytest.param(lambda m: m.update({SAMPLE: pickle.dumps(Runs(Path("MARKER")))}), id="bare"),
        pytest.param(lambda m: pickled_weight(m, Path("MARKER")), id="weight"),
        pytest.param(lambda m: opaque_constant(m, Path("MARKER"), "custom_obj"), id="object"),
        pytest.param(lambda m: opaque_constant(m, Path("MARKER"), "opaque_obj"), id="opaque"),
        pytest.param(
            lambda m: m.update({"archive/data/weights/model.pt": saved(Runs(Path("MARKER")))}),
            id="older weights",
        ),
        pytest.param(in_text(GRAPH, "torch.ops.aten.softmax.int", "torch.os.mkdir"), id="os"),
        pytest.param(in_text(GRAPH, "torch.ops.aten.softmax.int", "torch.load"), id="load"),
        pytest.param(
            in_text(GRAPH, "torch.ops.aten.softmax.int", "torch.ops.aten.from_file.default"),
            id="a file",
        ),
        pytest.param(
            in_text(GRAPH, "torch.ops.aten.softmax.int", "torch.ops.aten.add.__class__"),
            id="attribute",
        ),
        pytest.param(
            in_json(GRAPH, lambda g: g["range_constraints"].update({CODE: {"min_val": 1}})),
            id="range",
        ),
        pytest.param(
            in_json(
                GRAPH,
                lambda g: g["graph_module"]["graph"]["sym_int_values"].update(
                    {"x": {"as_expr": {"expr_str": CODE, "hint": None}}}
                ),
            ),
            id="size expression",
        ),
        pytest.param(in_text(GRAPH, '"name": "softmax"', f'"name": "x={CODE}"'), id="a name"),
        pytest.param(in_text(GRAPH, '"name": "softmax"', '"name": "torch.load"'), id="dotted"),
        pytest.param(in_text(GRAPH, '"name": "softmax"', '"name": "lambda"'), id="keyword"),
        pytest.param(in_text(GRAPH, "builtins.dict", "collections.defaultdict"), id="structure"),
        pytest.param(
            lambda m: m.update({"archive/data/aotinductor/model/x.so": b"\x7fELF"}), id="library"
        ),
        pytest.param(lambda m: m.update({"archive/extra/../../x": b""}), id="a path"),
        pytest.param(lambda m: m.update({GRAPH: b"[" * 100_000}), id="nesting"),
        pytest.param(lambda m: m.pop(GRAPH), id="no graph"),
    ],
)
def test_nothing_of_the_file_is_run(
    change: Callable[[Members], Any],
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = changed(program, tmp_path / "hostile.pt2", change)
    with pytest.raises(WeightsError, match=r"hostile\.pt2: not a portable program .*nothing of it"):
        open_file(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["hostile.pt2"]


def test_guards_and_traces_are_left_out(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def change(graph: Any) -> None:
        graph["guards_code"] = [f"{CODE} is None"]
        for node in graph["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {"nn_module_stack": CODE, "torch_fn": CODE}

    path = changed(program, tmp_path / "guards.pt2", in_json(GRAPH, change))
    image = torch.rand(1, 3, 24, 24)
    _, run = open_file(path)
    expected = torch.export.load(program).module()(image)
    assert torch.equal(torch.from_numpy(run(image.numpy())), expected)
    assert [entry.name for entry in tmp_path.iterdir()] == ["guards.pt2"]


@pytest.mark.parametrize(
    "expression",
    [
        "s0.__class__",
        "().__class__",
        "exec('1')",
        "Symbol('s0').free_symbols",
        "Symbol('x\"); 1')",
        "Symbol('s0', cls=print)",
        "9**9**9**9",
        "Pow(Integer(9), Integer(999999999))",
        "[s0 for s0 in s1]",
        "lambda: 1",
        "f'{s0}'",
        "'text'",
        f"{2**70}",
        "s0 if s0 else s1",
        "Lambda(s0, s0)",
    ],
)
def test_size_expressions_are_arithmetic(expression: str, program: Path, tmp_path: Path) -> None:
    value = {"x": {"as_expr": {"expr_str": expression, "hint": None}}}
    change = in_json(GRAPH, lambda g: g["graph_module"]["graph"]["sym_int_values"].update(value))
    with pytest.raises(WeightsError, match="size expression"):
        checked_program(changed(program, tmp_path / "a.pt2", change))


def test_damage_is_said(program: Path, tmp_path: Path) -> None:
    content = bytearray(program.read_bytes())
    with zipfile.ZipFile(program) as archive:
        values = archive.read("archive/data/weights/weight_0")
    content[content.index(values) + 5] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    with pytest.raises(WeightsError, match="CRC"):
        open_file(tmp_path / "flipped.pt2")
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-500])
    with pytest.raises(WeightsError, match="cannot be read"):
        open_file(tmp_path / "cut.pt2")
    packed = changed(
        program, tmp_path / "packed.pt2", lambda m: None, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(WeightsError, match="compressed member"):
        open_file(packed)


def test_compiled_packages_are_opened_only_when_asked_for(program: Path, tmp_path: Path) -> None:
    change = in_json("archive/extra/cgrseg.json", lambda d: d.update(kind="aoti", sizes=[[32, 32]]))
    path = changed(program, tmp_path / "compiled.pt2", change)
    with pytest.raises(ConfigError, match=r"machine code(.|\n)*trust_code=True"):
        open_file(path)
    with pytest.raises(WeightsError, match="does not load here"):
        open_file(path, trust_code=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"graph_module")] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"checksum of archive/models/model\.json is wrong"):
        open_file(path, trust_code=True)
