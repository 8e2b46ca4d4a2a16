"""The readers under test: an undamaged input, ways to damage it, and what a right answer is.

A reader gets a folder of its own for each case and returns what it made of the input, as plain
values that compare equal.  A file format with checksums (`checked`) must give exactly the
undamaged answer or an error; without them another valid file is an answer too, as long as
`valid` accepts it.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import re
import signal
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cgrseg.class_names import read_class_list
from cgrseg.config.loading import load_config
from cgrseg.config.schema import Config
from cgrseg.data.convert import convert_coco_instances, convert_labelme
from cgrseg.data.convert.color_masks import read_color_table
from cgrseg.data.convert.format import Format
from cgrseg.data.convert.formats import formats
from cgrseg.data.convert.formats.coco_stuff10k import HIGHEST_ID
from cgrseg.data.convert.image_names import read_stems
from cgrseg.data.convert.matlab import read_label_field
from cgrseg.data.convert.runner import run_conversion
from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import read_label, write_label_png
from cgrseg.errors import DataError
from cgrseg.evaluation.result import read_counts
from cgrseg.formats.description import UNSEALED, Description, sealed
from cgrseg.inference.exported_backend import open_exported
from cgrseg.models import read_checkpoint
from cgrseg.reporting.records import read_evaluation
from cgrseg.training.checkpointing import read_history, read_training_checkpoint
from cgrseg.training.resuming import refuse_other_optimizer
from tests.fuzz.damage import damaged_bytes, damaged_json

HEIGHT, WIDTH = 24, 32
Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the file that is damaged; its ending is the format's.
        content: undamaged.
        read: from the folder that holds the file, and may be written to below `out`.
        damages: drawn from for each case.
        checked: the format has checksums.
        valid: whether an answer is possible at all.
    """

    name: str
    content: bytes
    read: Callable[[Path], Any]
    damages: tuple[Damage, ...] = (damaged_bytes,)
    checked: bool = False
    valid: Callable[[Any], bool] = lambda answer: True


def _labels() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[6:, 8:20] = 1
    labels[12:, 15:] = 2
    return labels


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _encoded(suffix: str, image: np.ndarray) -> bytes:
    done, content = cv2.imencode(suffix, image)
    assert done
    return bytes(content.tobytes())


def _plain(value: Any) -> Any:
    """Tensors and arrays as (dtype, shape, bytes), which compare."""
    if isinstance(value, torch.Tensor):
        value = (
            value.detach().contiguous().view(torch.uint8).numpy() if value.ndim else value.item()
        )
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _small_checkpoint() -> dict[str, Any]:
    state = {f"decode_head.layer_{k}.weight": torch.full((3, 4), float(k)) for k in range(6)}
    meta = {"classes": ["a", "b"], "palette": np.array([[1, 2, 3], [4, 5, 6]]), "mIoU": 0.5}
    return {"state_dict": state, "meta": {**meta, "best": np.float64(0.25)}}


def _read_weights(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        checkpoint = read_checkpoint(folder / name)
        return _plain(checkpoint.state_dict)

    return read


class _Linear:
    """What `refuse_other_optimizer` needs of a module: a network and its settings."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(4, 3)
        self.config = Config()


def _training_state() -> dict[str, Any]:
    moments = {
        k: {
            "step": torch.tensor(5.0),
            "exp_avg": torch.ones(shape),
            "exp_avg_sq": torch.ones(shape),
        }
        for k, shape in enumerate([(3, 4), (3,)])
    }
    groups = [{"params": [0, 1], "names": ["weight", "bias"], "lr": 0.1}]
    training: dict[str, Any] = {"iteration": 5, "world_size": 1, "scaler": None}
    training["optimizer"] = {"state": moments, "param_groups": groups}
    return {"state_dict": {"w": torch.ones(3)}, "meta": {"iteration": 5}, "training": training}


def _bent_state(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint with one value of its training replaced by one of another kind."""
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    training = checkpoint["training"]
    state = training["optimizer"]["state"]
    value: Any = draw.choice(
        (
            *(torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4).to_sparse()),
            *(torch.full((3, 4), float("nan")), torch.zeros(1).expand(10**9, 4), torch.zeros(0)),
            *(torch.empty(3, 4, device="meta"), torch.zeros(3, 4, dtype=torch.complex64)),
            *(None, -1, 2**70, 0.5, float("nan"), "text", [], {}, [[]], {"scale": "x"}, True),
        )
    )
    place = draw.choice((training, training["optimizer"], state, state[0], state[1], checkpoint))
    place[draw.choice(list(place))] = value
    return _saved(checkpoint)


def _read_run(folder: Path) -> Any:
    checkpoint = read_training_checkpoint(folder / "latest.pth")
    refuse_other_optimizer(_Linear(), checkpoint)  # type: ignore[arg-type]
    # The step that moments of another shape used to end.
    module = _Linear().model
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    saved = checkpoint["training"]["optimizer"]
    groups = [{**optimizer.param_groups[0], "params": saved["param_groups"][0]["params"]}]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return _plain(checkpoint["state_dict"])


def _mat() -> bytes:
    import scipy.io

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"S": _labels().astype(np.uint16)})
    return buffer.getvalue()


def _packed_mat() -> bytes:
    import scipy.io

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"S": _labels().astype(np.uint16)}, do_compression=True)
    return buffer.getvalue()


def _coco() -> bytes:
    counts = [0, 10, HEIGHT * WIDTH - 10]
    parts: list[Any] = [
        [[2, 2, 20, 2, 20, 15, 2, 15]],
        {"size": [HEIGHT, WIDTH], "counts": counts},
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    content = {
        "images": [{"id": 1, "file_name": "a.png", **size}],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "sky"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1 + k % 2, "segmentation": part}
            for k, part in enumerate(parts)
        ],
    }
    return json.dumps(content).encode()


def _labelme() -> bytes:
    mask = base64.b64encode(_encoded(".png", np.full((4, 5), 255, np.uint8))).decode()
    shapes = [
        {"label": "road", "points": [[1, 1], [20, 1], [20, 15]], "shape_type": "polygon"},
        {"label": "sky", "points": [[3, 3], [9, 9]], "shape_type": "rectangle"},
        {"label": "sky", "points": [[5, 5], [8, 5]], "shape_type": "circle"},
        {"label": "tree", "points": [[1, 2], [5, 5]], "shape_type": "mask", "mask": mask},
    ]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return json.dumps({"shapes": shapes, "imagePath": "a.png", **size}).encode()


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    cell = {"bytes": _encoded(".png", _picture()), "path": None}
    mask = {"bytes": _label_png(), "path": None}
    names = {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "_type": "List"}
    info = json.dumps({"info": {"features": {"names": names}}})
    table = pyarrow.table({"image": [cell] * 3, "label": [mask] * 3})
    content = io.BytesIO()
    table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, content, row_group_size=2)
    return content.getvalue()


def _tools() -> dict[str, tuple[str, str, bytes, bool]]:
    """Format, file name, content and whether it is JSON, by the name of the annotation tool."""
    size = {"original_height": HEIGHT, "original_width": WIDTH}
    corners = [[5, 5], [60, 5], [60, 70]]
    brush = encode_brush(np.arange(HEIGHT * WIDTH) % 7 < 3)
    task = {
        "data": {"image": "a.png"},
        "annotations": [
            {
                "result": [
                    {"type": kind, "value": {**value, kind: [name]}, **size}
                    for kind, name, value in (
                        ("polygonlabels", "road", {"points": corners}),
                        ("brushlabels", "sky", {"rle": list(brush), "format": "rle"}),
                        ("rectanglelabels", "sky", {"x": 5, "y": 6, "width": 20, "height": 9}),
                    )
                ]
            }
        ],
    }
    via = {
        "a.png": {
            "filename": "a.png",
            "regions": [
                {
                    "shape_attributes": {"name": "rect", "x": 2, "y": 3, "width": 9, "height": 5},
                    "region_attributes": {"class": "road"},
                },
                {
                    "shape_attributes": {"name": "circle", "cx": 20, "cy": 9, "r": 4},
                    "region_attributes": {"class": "sky"},
                },
            ],
        }
    }
    cvat = (
        "<annotations><meta><task><labels><label><name>road</name></label></labels></task></meta>"
        f'<image name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        '<polygon label="road" points="1,1;20,1;20,15" z_order="1"/>'
        '<mask label="road" rle="2,3,7" left="3" top="4" width="4" height="3"/>'
        "</image></annotations>"
    )
    return {
        "Label Studio": ("label-studio", "export.json", json.dumps([task]).encode(), True),
        "VIA": ("via", "via.json", json.dumps(via).encode(), True),
        "CVAT": ("cvat", "annotations.xml", cvat.encode(), False),
        "YOLO": ("yolo", "a.txt", b"0 0.1 0.1 0.8 0.1 0.8 0.9\n1 0.2 0.2 0.4 0.2 0.4 0.4\n", False),
    }


def encode_brush(mask: np.ndarray) -> bytes:
    """Label Studio's run lengths of a flat bool mask, all four channels alike, runs of 16 bits."""
    changes = np.flatnonzero(np.diff(mask)) + 1
    edges = [0, *changes.tolist(), mask.size]
    bits = f"{mask.size * 4:032b}" + f"{7:05b}" + f"{15:04b}" * 4
    for start, end in itertools.pairwise(edges):
        bits += "1" + "00" + f"{(end - start) * 4 - 1:016b}" + f"{255 * mask[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _converted(convert: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """The label maps and classes that a converter wrote; its named failures are refusals."""

    def read(folder: Path) -> Any:
        (folder / "a.png").write_bytes(_encoded(".png", _picture()))
        report = convert(folder)
        maps = sorted((folder / "out").rglob("annotations/**/*.png"))
        if not maps:
            raise DataError(report.failures[0].message if report.failures else "nothing to do")
        labels = [read_label(path) for path in maps]
        return report.classes, [_plain(label) for label in labels]

    return read


def _possible_labels(answer: Any) -> bool:
    """Each label map has the image's size, and only ids of the classes or the ignored one."""
    classes, maps = answer
    for _, shape, content in maps:
        if shape != (HEIGHT, WIDTH) or not set(content) <= {*range(len(classes)), 255}:
            return False
    return True


def _description(kind: str) -> Description:
    return Description(
        kind=kind,  # type: ignore[arg-type]
        variant="cgrseg_t",
        num_classes=2,
        classes=["a", "b"],
        palette=None,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        test=None,
        sizes=[(HEIGHT, WIDTH)],
        batch=1,
        takes="normalised",
        gives="logits",
        precision="fp32",
        source="",
        source_digest="",
        version="",
    )


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 2, 3, stride=8, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.convolution(image).relu().softmax(1)
        return found


def _program() -> bytes:
    program = torch.export.export(_Small().eval(), (torch.zeros(1, 3, HEIGHT, WIDTH),))
    buffer = io.BytesIO()
    about = _description("pt2").model_dump_json()
    torch.export.save(program, buffer, extra_files={"cgrseg.json": about})
    return buffer.getvalue()


def _damaged_member(content: bytes, draw: random.Random) -> bytes:
    """A member of an archive damaged, with a right checksum: what a person could do."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        weighty = [name for name in names if name.endswith((".json", ".pkl", ".pt"))]
        chosen = draw.choice(weighty or names)
        for name in names:
            member = old.read(name)
            if name == chosen and member:
                damage = damaged_json if name.endswith(".json") else damaged_bytes
                member = damage(member, draw)
            new.writestr(name, member)
    return out.getvalue()


def _resealed(content: bytes, draw: random.Random) -> bytes:
    """Bytes damaged and a new digest written over them: what a person could do."""
    for _ in range(100):
        damaged = damaged_bytes(content, draw)
        found = re.search(rb"file_digest[^0-9a-f]{3,20}([0-9a-f]{64})", damaged)
        if found is not None:
            unsealed = damaged.replace(found.group(1), UNSEALED.encode())
            return sealed(unsealed) if unsealed.count(UNSEALED.encode()) == 1 else damaged
    return content


def _onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    weight = np.linspace(-1, 1, 2 * 3 * 3 * 3, dtype=np.float32).reshape(2, 3, 3, 3)
    nodes = [
        helper.make_node(
            "Conv", ["image", "w"], ["c"], kernel_shape=[3, 3], strides=[8, 8], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Softmax", ["c"], ["logits"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    shape = [1, 2, HEIGHT // 8, WIDTH // 8]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
    weights = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "small", [image], [logits], weights)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    about = _description("onnx").model_copy(update={"file_digest": UNSEALED})
    helper.set_model_props(model, {"cgrseg": about.model_dump_json()})
    return sealed(model.SerializeToString())


def _openvino() -> tuple[bytes, bytes]:
    import tempfile

    import openvino

    from cgrseg.formats import load_format
    from cgrseg.formats.base import QuantizableFormat

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m.onnx").write_bytes(_onnx())
        model = openvino.Core().read_model(Path(folder) / "m.onnx")
        path = Path(folder) / "m.xml"
        export_format = load_format("openvino")
        assert isinstance(export_format, QuantizableFormat)
        export_format.save(model, _description("openvino"), path)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _run_exported(name: str, beside: tuple[str, bytes] | None = None) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        if beside is not None:
            (folder / beside[0]).write_bytes(beside[1])
        backend = open_exported(folder / name, keep_memory=False)
        image = torch.linspace(-1, 1, 3 * HEIGHT * WIDTH).view(1, 3, HEIGHT, WIDTH)
        return _plain(backend.logits(image).numpy())

    return read


def _read_config(folder: Path) -> Any:
    return load_config(folder / "config.json").model_dump_json()


def _table(read: Callable[[Path], Any], name: str) -> Callable[[Path], Any]:
    return lambda folder: _plain(read(folder / name))


def _label_png() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_label_png(Path(folder) / "a.png", _labels(), [(1, 2, 3)] * 3)
        return (Path(folder) / "a.png").read_bytes()


def _counts() -> bytes:
    buffer = io.BytesIO()
    counts = np.arange(12, dtype=np.int64).reshape(2, 3, 2)
    np.savez_compressed(buffer, counts=counts, stems=["x", "y"], classes=["a", "b"])
    return buffer.getvalue()


def _safetensors() -> bytes:
    from safetensors.torch import save

    state = {f"decode_head.layer_{k}.weight": torch.full((3, 4), float(k)) for k in range(6)}
    return bytes(save(state, metadata={"format": "pt"}))


def _evaluation() -> bytes:
    classes = [{"class": name, "IoU": 0.5, "Acc": None} for name in ("a", "b")]
    scores = {"mIoU": 0.5, "aAcc": 0.75}
    record = {"scores": scores, "per_class": classes, "confusion": [[3, 1], [1, 3]]}
    return json.dumps(record).encode()


def _ends_the_process(folder: Path) -> bytes:
    content = (folder / "a.txt").read_bytes()
    if max(content, default=0) > 0x7F:
        os.kill(os.getpid(), signal.SIGSEGV)
    return content


SELF_TEST = {"crashes": Reader("a.txt", b"plain text" * 5, _ends_the_process)}
"""A reader whose process ends at some inputs, for the test of the guard."""


def make_readers() -> dict[str, Reader]:
    """All readers by name; building them takes seconds."""
    text, jsons = (damaged_bytes,), (damaged_json, damaged_json, damaged_bytes)
    xml, weights = _openvino()
    program = _program()
    config = Config().model_dump_json().encode()

    def coco(folder: Path) -> Any:
        return convert_coco_instances(folder / "coco.json", folder, folder / "out")

    def labelme(folder: Path) -> Any:
        return convert_labelme(folder, folder / "out")

    def tool(kind: str, name: str) -> Callable[[Path], Any]:
        def run(folder: Path) -> Any:
            source = folder / name
            if kind == "yolo":
                source = folder / "data.yaml"
                source.write_text("train: .\nnames: [road, sky]\n")
            make: Callable[..., Format] = formats()[kind]
            return run_conversion(make(source, folder / "out", workers=0))

        return run

    def image(name: str) -> Callable[[Path], Any]:
        return lambda folder: _plain(read_image(folder / name))

    readers = {
        "checkpoint": Reader(
            "a.pth", _saved(_small_checkpoint()), _read_weights("a.pth"), checked=True
        ),
        "checkpoint, repacked": Reader(
            "a.pth", _saved(_small_checkpoint()), _read_weights("a.pth"), (_damaged_member,)
        ),
        "checkpoint, older form": Reader(
            "a.pth",
            _saved(_small_checkpoint(), _use_new_zipfile_serialization=False),
            _read_weights("a.pth"),
        ),
        "safetensors": Reader("a.safetensors", _safetensors(), _read_weights("a.safetensors")),
        "run folder": Reader(
            "latest.pth", _saved(_training_state()), _read_run, (_bent_state, damaged_bytes)
        ),
        "evaluation": Reader(
            "evaluation.json", _evaluation(), lambda f: dict(read_evaluation(f)), jsons
        ),
        "counts of an evaluation": Reader(
            "a.npz", _counts(), lambda f: _plain(read_counts(f / "a.npz")), checked=True
        ),
        "scores of a run": Reader(
            "scores.csv", b"iteration,mIoU\n100,0.5\n200,0.75\n", lambda f: read_history(f)
        ),
        ".mat": Reader(
            "a.mat",
            _mat(),
            lambda f: _plain(read_label_field(f / "a.mat", "S", highest=HIGHEST_ID)),
        ),
        ".mat, compressed": Reader(
            "a.mat",
            _packed_mat(),
            lambda f: _plain(read_label_field(f / "a.mat", "S", highest=HIGHEST_ID)),
        ),
        "COCO": Reader("coco.json", _coco(), _converted(coco), jsons, valid=_possible_labels),
        "LabelMe": Reader("a.json", _labelme(), _converted(labelme), jsons, valid=_possible_labels),
        **{
            title: Reader(
                name,
                content,
                _converted(tool(kind, name)),
                jsons if is_json else (damaged_bytes,),
                valid=_possible_labels,
            )
            for title, (kind, name, content, is_json) in _tools().items()
        },
        "parquet": Reader(
            "a.parquet",
            _parquet(),
            _converted(tool("huggingface", "a.parquet")),
            valid=_possible_labels,
        ),
        "label PNG": Reader(
            "a.png", _label_png(), lambda f: _plain(read_label(f / "a.png")), checked=True
        ),
        "image, PNG": Reader("a.png", _encoded(".png", _picture()), image("a.png"), checked=True),
        "config": Reader("config.json", config, _read_config, jsons),
        "image list": Reader(
            "a.txt", b"a\nb\nstreet 1\n\xc3\xa9\n", _table(read_stems, "a.txt"), text
        ),
        "class list": Reader(
            "a.txt", b"road\nsky\n# comment\ntree\n", _table(read_class_list, "a.txt"), text
        ),
        "color table": Reader(
            "a.txt",
            b"0 0 0 road\n255 0 0 sky\n1 2 3 tree\n",
            lambda f: {str(k): v for k, v in read_color_table(f / "a.txt").items()},
            text,
        ),
        ".pt2": Reader("a.pt2", program, _run_exported("a.pt2"), checked=True),
        ".pt2, repacked": Reader("a.pt2", program, _run_exported("a.pt2"), (_damaged_member,)),
        ".onnx": Reader("a.onnx", _onnx(), _run_exported("a.onnx"), checked=True),
        ".onnx, resealed": Reader("a.onnx", _onnx(), _run_exported("a.onnx"), (_resealed,)),
        "OpenVINO .xml, resealed": Reader(
            "a.xml", xml, _run_exported("a.xml", ("a.bin", weights)), (_resealed,)
        ),
        "OpenVINO .xml": Reader(
            "a.xml", xml, _run_exported("a.xml", ("a.bin", weights)), checked=True
        ),
        "OpenVINO .bin": Reader(
            "a.bin", weights, _run_exported("a.xml", ("a.xml", xml)), checked=True
        ),
    }
    for suffix in (".jpg", ".bmp", ".tif", ".webp"):
        readers[f"image, {suffix[1:].upper()}"] = Reader(
            f"a{suffix}", _encoded(suffix, _picture()), image(f"a{suffix}")
        )
    return readers
