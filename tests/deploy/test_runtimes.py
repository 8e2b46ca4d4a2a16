"""ONNX Runtime and OpenVINO against the float32 network."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from cgrseg.bench.random_weights import draw_weights
from cgrseg.cli.main import app
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import read_label
from cgrseg.deploy import Tolerance, export
from cgrseg.deploy.verify import HALF_PRECISION, as_input, sample_images, verify
from cgrseg.errors import ConfigError, WeightsError
from cgrseg.formats import describe
from cgrseg.formats.onnx_format import FORMAT as ONNX
from cgrseg.formats.openvino_format import FORMAT as OPENVINO
from cgrseg.formats.openvino_format import resize_bicubic
from cgrseg.inference import Predictor
from cgrseg.inference.exported_backend import open_exported
from cgrseg.models import CGRSeg, create_model
from tests.deploy.conftest import small_network, write_checkpoint
from tests.deploy.tensorrt_parser import refused
from tests.inference.fixtures import photo
from tests.small_variant import small_variant

MISSING = "needs the extra [export]"
onnx = pytest.importorskip("onnx", reason=MISSING)
pytest.importorskip("onnxscript", reason=MISSING)
pytest.importorskip("onnxruntime", reason=MISSING)
openvino = pytest.importorskip("openvino", reason=MISSING)


@pytest.fixture(scope="module")
def network() -> Iterator[CGRSeg]:
    """Small: every test here converts it, or what was made of it."""
    with small_variant() as name:
        yield small_network(name)


@pytest.fixture(scope="module")
def checkpoint(network: CGRSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(network, tmp_path_factory.mktemp("checkpoint") / "small.pth")


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "small.onnx"
    return export(checkpoint, "onnx", out, sizes=[(64, 96)]).path


@pytest.fixture(scope="module")
def openvino_file(onnx_file: Path) -> Path:
    out = onnx_file.with_suffix(".xml")
    about = describe(onnx_file).model_copy(update={"kind": "openvino"})
    OPENVINO.save(openvino.Core().read_model(onnx_file), about, out)
    return out


def test_onnx_predicts_like_the_checkpoint(onnx_file: Path, checkpoint: Path) -> None:
    picture = photo(128, 192)
    found = Predictor.from_pretrained(onnx_file)(picture)
    wanted = Predictor.from_pretrained(checkpoint)(picture)
    assert found.classes == wanted.classes
    assert (found.labels == wanted.labels).mean() > 0.999


@pytest.mark.parametrize("changes", [[], ["test.flip=true"]], ids=["plain", "flip"])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_prediction_needs_no_pytorch_and_is_the_same_without_it(
    suffix: str,
    changes: list[str],
    onnx_file: Path,
    openvino_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = {".onnx": onnx_file, ".xml": openvino_file}[suffix]
    write_image(tmp_path / "picture.png", photo(128, 192))
    precision = ["--precision", "auto"] if suffix == ".xml" else []
    words = ["predict", str(file), "picture.png", *changes, *precision, "--out"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*words, "with"])
    assert result.exit_code == 0, result.output
    code = "import sys; sys.modules['torch'] = None; from cgrseg.cli.main import main; main()"
    command = [sys.executable, "-c", code, *words, "without"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written: list[dict[str, bytes]] = []
    for name in ("with", "without"):
        paths = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        written.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in paths})
    assert {"labels/picture.png", "overlays/picture.jpg", "prediction.json"} <= set(written[0])
    assert written[0] == written[1]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_exported_file_teaches_as_its_checkpoint_does(
    suffix: str, onnx_file: Path, openvino_file: Path, checkpoint: Path, tmp_path: Path
) -> None:
    file = {".onnx": onnx_file, ".xml": openvino_file}[suffix]
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", photo(64, 96, seed=number))
    for source, out in ((checkpoint, "a"), (file, "b")):
        words = ["autolabel", source, tmp_path / "images", "--out", tmp_path / out, "--keep", "0.5"]
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 0, result.output
        assert "next: cgrseg train CONFIG data.extra=" in result.output
    label, other = (
        np.stack(
            [read_label(path) for path in sorted((tmp_path / out / "annotations").rglob("*.png"))]
        )
        for out in "ab"
    )
    assert len(label) == 3
    assert (label == other).mean() > 0.98
    assert 0.05 < (label == 255).mean() < 0.6


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs a signal of its own")
def test_a_signal_is_handled_when_models_are_gone(openvino_file: Path) -> None:
    code = f"""if True:
        import signal
        import numpy as np
        from pathlib import Path
        from cgrseg.formats.openvino_format import FORMAT
        seen = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
        runs = [FORMAT.open(Path({str(openvino_file)!r}))[1] for _ in range(2)]
        for run in runs:
            run(np.zeros((1, 3, 64, 96), np.float32))
        del run
        while runs:
            del runs[0]
        signal.raise_signal(signal.SIGUSR1)
        print(len(seen))
    """
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_onnx_file_is_tidy(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, 64, 96]
    assert model.graph.input[0].name == "image" and model.graph.output[0].name == "logits"
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(__file__).parents[2]).encode() not in onnx_file.read_bytes()


def test_the_parser_of_tensorrt_takes_files_of_one_size(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    assert not refused(model)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    next(each for each in resize.attribute if each.name == "mode").s = b"cubic"
    model.graph.node[0].op_type = "Unique"
    assert refused(model) == {"operator Unique", "Resize, cubic"}


def test_openvino_agrees(openvino_file: Path, network: CGRSeg) -> None:
    checks = verify(open_exported(openvino_file), network, [(64, 96)], [1, 3], Tolerance())
    assert len(checks) == 2


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_half_precision_halves_the_file(
    suffix: str, onnx_file: Path, openvino_file: Path, network: CGRSeg, tmp_path: Path
) -> None:
    whole, half = (openvino_file if suffix == ".xml" else onnx_file), tmp_path / f"half{suffix}"
    about = describe(whole).model_copy(update={"precision": "fp16"})
    if suffix == ".onnx":
        ONNX.save(onnx.load(whole), about, half)
    else:
        OPENVINO.save(openvino.Core().read_model(whole), about, half)
    heavy = ".bin" if suffix == ".xml" else suffix
    assert half.with_suffix(heavy).stat().st_size < 0.55 * whole.with_suffix(heavy).stat().st_size
    backend = open_exported(half)
    assert backend.description.precision == "fp16"
    assert backend.logits(np.zeros((1, 3, 64, 96), np.float32)).dtype == np.float32
    checks = verify(backend, network, [(64, 96)], [1, 2], HALF_PRECISION)
    assert all(check.logits is not None and check.logits > 1e-5 for check in checks)


def test_half_precision_keeps_sums_over_positions_in_float32(
    onnx_file: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half.onnx"
    about = describe(onnx_file).model_copy(update={"precision": "fp16"})
    ONNX.save(onnx.load(onnx_file), about, half)
    model = onnx.shape_inference.infer_shapes(onnx.load(half))
    onnx.checker.check_model(model, full_check=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    wide, narrow = (
        {
            kinds[node.output[0]]
            for node in model.graph.node
            if node.op_type in ("Conv", "MatMul", "ReduceSum", "Softmax", "Exp")
            and ("head.guide" in node.name) is guide
        }
        for guide in (True, False)
    )
    assert wide == {onnx.TensorProto.FLOAT} and narrow == {onnx.TensorProto.FLOAT16}
    assert not refused(model)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 49, 49), (66, 91)), ((2, 1, 16, 16), (24, 8))])
def test_tables_are_resized_as_pytorch_does_it(
    shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    table = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(table), size, mode="bicubic").numpy()
    found = resize_bicubic(table, size)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_damaged_models(onnx_file: Path, openvino_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(onnx_file.read_bytes()[:-50_000])
    with pytest.raises(WeightsError, match=r"cut\.onnx: a model without .*cut short"):
        open_exported(cut)
    flipped = bytearray(onnx_file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    cut.write_bytes(flipped)
    with pytest.raises(WeightsError, match=r"cut\.onnx: .* not those that were written"):
        open_exported(cut)
    alone = tmp_path / "alone.xml"
    alone.write_bytes(openvino_file.read_bytes())
    with pytest.raises(WeightsError, match=r"no alone\.bin beside it"):
        open_exported(alone)
    weights = bytearray(openvino_file.with_suffix(".bin").read_bytes())
    weights[1000] ^= 1
    alone.with_suffix(".bin").write_bytes(weights)
    with pytest.raises(WeightsError, match=r"alone\.bin"):
        open_exported(alone)
    graph = openvino_file.read_bytes()
    for old, new in ((b'strides="1, 1"', b'strides="2, 1"'), (b"<net", b"<!DOCTYPE net><net")):
        assert old in graph
        alone.write_bytes(graph.replace(old, new, 1))
        with pytest.raises(WeightsError, match=r"alone\.xml: .* cannot be read"):
            open_exported(alone)


def test_tensors_in_other_files_are_refused(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    out = tmp_path / "out.onnx"
    ONNX.save(model, describe(onnx_file), out)
    with pytest.raises(WeightsError, match="tensors lie in other files"):
        open_exported(out)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["cgrseg_t", "cgrseg_b", "cgrseg_l"])
@pytest.mark.parametrize("kind", ["onnx", "openvino", "pt2"])
def test_every_variant_and_format(variant: str, kind: str, tmp_path: Path) -> None:
    """One file for two sizes, batches of 1 and 4, within 1e-3 and 99.9 %."""
    model = draw_weights(create_model(variant, 150))
    sizes = [(512, 512), (512, 704)]
    suffix = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}[kind]
    result = export(model, kind, tmp_path / f"model{suffix}", sizes=sizes)  # type: ignore[arg-type]
    checks = verify(open_exported(result.path), model, sizes, [1, 4], Tolerance())
    assert len(checks) == 4


@pytest.mark.slow
def test_openvino_of_any_size(checkpoint: Path, network: CGRSeg, tmp_path: Path) -> None:
    """The tables are also left to OpenVINO once, as other programs do."""
    told: list[str] = []
    out = tmp_path / "any.xml"
    result = export(checkpoint, "openvino", out, tell=told.append)
    sizes = [check.size for check in result.checks]
    assert sizes.count((96, 160)) == 4 and sizes.count((32, 32)) == 2 and len(sizes) == 14
    assert "tables that OpenVINO resizes" in told[-3]
    ((_, _, plain),) = OPENVINO.other_runs(out)
    _, ours = OPENVINO.open(out)
    batch = as_input(sample_images(1, (64, 128))).numpy()
    assert 0 < np.abs(plain(batch) - ours(batch)).max() < 1e-3 * np.abs(ours(batch)).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_half_precision_of_any_size(kind: str, checkpoint: Path) -> None:
    result = export(checkpoint, kind, precision="fp16")
    assert result.path.stem == "small-fp16" and len(result.checks) >= 12
    about = describe(result.path)
    assert about.precision == "fp16"
    assert about.agreement == min(check.labels for check in result.checks) > 0.99
    assert Predictor.from_pretrained(result.path)(photo(64, 96)).labels.shape == (64, 96)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999), ("fp16", 0.99)])
def test_label_maps_from_pixels(
    precision: str, least: float, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.onnx"
    export(
        checkpoint,
        "onnx",
        out,
        sizes=[(64, 96)],
        takes="pixels",
        gives="labels",
        batch=2,
        precision=precision,
    )
    picture = photo(64, 96)
    found = Predictor.from_pretrained(out)(picture)
    wanted = Predictor.from_pretrained(checkpoint)(picture)
    assert (found.labels == wanted.labels).mean() > least
    assert found.labels.dtype == np.uint8


@pytest.mark.slow
def test_compiled_package_with_two_sizes(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.pt2"
    sizes = [(64, 64), (64, 96)]
    result = export(checkpoint, "aoti", out, sizes=sizes)
    assert {check.size for check in result.checks} == set(sizes)
    assert describe(out).kind == "aoti"
    with pytest.raises(ConfigError, match="trust_code=True"):
        Predictor.from_pretrained(out)
    assert Predictor.from_pretrained(out, trust_code=True)(photo(64, 96)).labels.shape == (64, 96)
