"""Eight bits: what is kept back, what is measured, and what leaves no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cgrseg.bench.random_weights import draw_weights
from cgrseg.cli.main import app
from cgrseg.config import load_config
from cgrseg.config.schema import TestConfig as Settings
from cgrseg.data.channels import read_pixels
from cgrseg.data.image_files import read_image
from cgrseg.data.label_files import read_label
from cgrseg.data.synthetic import SYNTHETIC_CLASSES, write_dataset
from cgrseg.deploy import ExportResult, calibration, export, int8
from cgrseg.deploy.calibration import (
    CalibrationInputs,
    find_labeled_split,
    float_backend,
    mean_iou,
)
from cgrseg.deploy.export import describe_export
from cgrseg.deploy.graph import ExportGraph
from cgrseg.deploy.int8 import Int8Options, Int8Report
from cgrseg.deploy.verify import as_input, sample_images
from cgrseg.errors import CGRSegError, ConfigError, DataError, EnvironmentProblem, WeightsError
from cgrseg.evaluation import evaluate_model
from cgrseg.formats import describe
from cgrseg.formats.base import ExportJob, matching_nodes
from cgrseg.inference import Predictor, TorchBackend
from cgrseg.models import create_model
from tests.deploy.device_packages import need_packages
from tests.inference.fixtures import photo
from tests.small_variant import small_variant

MISSING = "needs the extra [export]"
onnx = pytest.importorskip("onnx", reason=MISSING)
pytest.importorskip("onnxscript", reason=MISSING)
pytest.importorskip("onnxruntime", reason=MISSING)
openvino = pytest.importorskip("openvino", reason=MISSING)
pytest.importorskip("nncf", reason=MISSING)

PATTERNS = [pattern for _, pattern in int8._STEPS[:2]]
Save = Callable[[Path, dict[str, Any] | None], Path]


def report_of(result: ExportResult) -> Int8Report:
    assert result.int8 is not None and result.checks == []
    return result.int8


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes to calibrate with and three to measure on, one of them upright."""
    root = write_dataset(
        tmp_path_factory.mktemp("scenes") / "data", train=6, val=3, size=(64, 96), workers=1
    )
    image = min(root.glob("images/validation/*"))
    label = min(root.glob("annotations/validation/*"))
    for file, pixels in ((image, read_image(image)[:, :, ::-1]), (label, read_label(label))):
        assert cv2.imwrite(str(file), cv2.copyMakeBorder(pixels, 0, 60, 0, 0, cv2.BORDER_WRAP))
    return root


@pytest.fixture(scope="module", autouse=True)
def variant() -> Iterator[str]:
    with small_variant() as name:
        yield name


@pytest.fixture(scope="module")
def save(scenes: Path, variant: str) -> Save:
    model = draw_weights(create_model(variant, len(SYNTHETIC_CLASSES)))

    def write(path: Path, config: dict[str, Any] | None) -> Path:
        meta = {
            "format": 1,
            "variant": model.variant,
            "context_blocks": model.context_blocks,
            "classes": list(SYNTHETIC_CLASSES),
            "preprocessing": {"scale": [96, 64]},
            **({"config": config} if config else {}),
        }
        torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
        return path

    return write


@pytest.fixture(scope="module")
def checkpoint(save: Save, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config("cgrseg-t_synthetic", {"data.root": str(scenes)})
    return save(tmp_path_factory.mktemp("run") / "small.pth", config.model_dump(mode="json"))


@pytest.fixture(scope="module")
def made(checkpoint: Path) -> Callable[[str], ExportResult]:
    """Each format's file, made once."""
    kept: dict[str, ExportResult] = {}

    def make(kind: Any) -> ExportResult:
        if kind not in kept:
            # Weights drawn at random have near ties everywhere, which 8 bits decide otherwise.
            kept[kind] = export(checkpoint, kind, int8=Int8Options(images=4, max_drop=100.0))
        return kept[kind]

    return make


@pytest.mark.parametrize(
    "kind",
    ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "litert", "executorch", "ncnn"],
)
def test_file_is_measured_and_predicts(
    made: Callable[[str], ExportResult], kind: str, checkpoint: Path
) -> None:
    """One of the three images would make an upright input; it is fitted, and measured too."""
    if kind in ("litert", "executorch", "ncnn"):
        need_packages(kind)
    result = made(kind)
    found = report_of(result)
    assert found.images == 4 and found.kept_back == ("classifier", "attention products")
    assert found.unmeasured == "" and found.measured_on.startswith("3 images of ")
    assert found.before is not None and found.after is not None and 0 < found.before < 1
    about = describe(result.path)
    assert about.precision == "int8" and about.sizes == [(64, 96)]
    assert about.agreement == found.agreement
    assert result.megabytes < 0.6 * checkpoint.stat().st_size / 1e6
    predicted = Predictor.from_pretrained(result.path)(photo(64, 96)).labels
    wanted = Predictor.from_pretrained(checkpoint)(photo(64, 96)).labels
    assert 0.3 < (predicted == wanted).mean() < 1 and 0.5 < found.agreement < 1


def test_litert_keeps_back_what_it_should(made: Callable[[str], ExportResult]) -> None:
    need_packages("litert")
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    opened = interpreters.Interpreter(str(made("litert").path))
    opened.allocate_tensors()
    assert opened.get_input_details()[0]["dtype"] == np.float32
    assert opened.get_output_details()[0]["dtype"] == np.float32
    types = {each["index"]: each["dtype"] for each in opened.get_tensor_details()}
    computing = [
        (each["op_name"], {types[int(each["inputs"][0])], types[int(each["outputs"][0])]})
        for each in opened._get_ops_details()
    ]
    convolutions = [found for name, found in computing if name in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    assert convolutions.count({np.int8}) > 50
    products = [found for name, found in computing if name in ("BATCH_MATMUL", "SOFTMAX")]
    assert products and all(found == {np.float32} for found in products)


def test_ncnn_keeps_back_what_it_should(made: Callable[[str], ExportResult]) -> None:
    need_packages("ncnn")
    lines = made("ncnn").path.read_text().splitlines()[2:]
    convolutions = [line for line in lines if line.startswith("Convolution")]
    quantized = [line for line in lines if " 8=" in line]
    assert set(quantized) < set(convolutions) and len(quantized) > 40
    assert len(convolutions) - len(quantized) == 2  # the two products with the class centers


def test_executorch_keeps_back_what_it_should() -> None:
    need_packages("executorch")
    from cgrseg.formats.executorch_format import FORMAT

    model = draw_weights(create_model("cgrseg_t", 3, context_blocks=1))
    about = describe_export(model, model, "executorch", [(32, 64)], 1, "normalised", "logits")
    built = FORMAT.build(ExportJob(model, lambda size: ExportGraph(model, size), about))
    inputs = [as_input(sample_images(1, (32, 64), seed)).numpy() for seed in range(2)]
    quantized = FORMAT.quantize(built, inputs, PATTERNS).program
    found = {True: 0, False: 0}
    for node in quantized.graph.nodes:
        kind = str(node.target).partition(".")[2]
        if kind.startswith(("conv2d", "linear", "matmul")):
            in_bits = all("dequantize" in str(source.target) for source in node.args[:2])
            assert not in_bits or kind == "conv2d.default"
            found[in_bits] += 1
    assert found[True] > 100 and found[False] > 20
    image = next(node for node in quantized.graph.nodes if node.name == "image")
    (logits,) = quantized.graph.output_node().args[0]
    assert image.meta["val"].dtype == logits.meta["val"].dtype == torch.float32


def test_onnx_keeps_back_what_it_should(made: Callable[[str], ExportResult]) -> None:
    graph = onnx.load(made("onnx").path).graph
    makers = {name: node for node in graph.node for name in node.output}

    def is_quantised(node: Any) -> bool:
        # All of what it multiplies; a tensor that others read in 8 bits may come to it so too.
        before = [makers[name].op_type if name in makers else "" for name in node.input[:2]]
        return set(before) == {"DequantizeLinear"}

    kept = set(matching_nodes([node.name for node in graph.node], PATTERNS))
    computing = [node for node in graph.node if node.op_type in ("Conv", "MatMul")]
    assert not [node.name for node in computing if node.name in kept and is_quantised(node)]
    assert sum(is_quantised(node) for node in computing if node.name not in kept) > 50


def test_onnx_sums_of_two_products_fit_into_16_bits(made: Callable[[str], ExportResult]) -> None:
    """As processors without VNNI add them: the file then computes alike everywhere."""
    graph = onnx.load(made("onnx").path).graph
    stored = [onnx.numpy_helper.to_array(one) for one in graph.initializer]
    weights = [values for values in stored if values.dtype == np.int8 and values.ndim > 1]
    most = max(int(np.abs(values.astype(np.int32)).max()) for values in weights)
    assert len(weights) > 20 and 2 * 255 * most < 2**15
    assert most > 50  # no bit more is lost


@pytest.mark.slow
def test_openvino_keeps_back_what_it_should(made: Callable[[str], ExportResult]) -> None:
    model = openvino.Core().read_model(made("openvino").path)

    def is_quantised(node: Any) -> bool:
        before = [node.input_value(place).get_node().get_type_name() for place in (0, 1)]
        return "FakeQuantize" in before

    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    kept = matching_nodes(list(nodes), PATTERNS)
    computing = ("Convolution", "GroupConvolution", "MatMul")
    inside = [name for name in kept if nodes[name].get_type_name() in computing]
    assert len(inside) > 10 and not [name for name in inside if is_quantised(nodes[name])]
    others = [node for name, node in nodes.items() if name not in kept]
    assert sum(is_quantised(n) for n in others if n.get_type_name() in computing) > 50
    stored = [n for n in nodes.values() if n.get_type_name() == "Constant"]
    weights = [n.get_data() for n in stored if n.get_element_type() == openvino.Type.i8]
    most = max(int(np.abs(values.astype(np.int32)).max()) for values in weights)
    assert len(weights) > 20 and 50 < most <= 64  # as those of ONNX


@pytest.mark.slow
def test_command_reports_what_was_measured(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    options = [
        "--int8",
        "--calibration-images",
        "2",
        "--limit",
        "1",
        "--max-drop",
        "100",
        "--out",
        str(out),
    ]
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    result = runner.invoke(app, ["export", str(checkpoint), *options])
    assert result.exit_code == 0, result.output
    assert "calibrated on 2 images; kept in float32: classifier, attention" in result.stdout
    assert "points) on 1 images of " in result.stdout and "mIoU" in result.stdout
    assert f"written: {out}" in result.stdout and describe(out).precision == "int8"


def test_a_pattern_without_nodes_is_no_silence() -> None:
    names = ["network.head.guide/MatMul_3", "network.head/Conv_4", "network.backbone/MatMul_5"]
    assert matching_nodes(names, PATTERNS[:1]) == names[:1]
    assert matching_nodes(names, PATTERNS) == [names[2], names[0]]
    with pytest.raises(EnvironmentProblem, match="no node of the exported graph has a name like"):
        matching_nodes(["Conv_1", "MatMul_2"], PATTERNS[:1])


@pytest.mark.slow
def test_too_large_a_drop_leaves_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drop that none can keep; in one step only, since each calibrates anew."""
    monkeypatch.setattr(int8, "_STEPS", int8._STEPS[:2])
    with pytest.raises(WeightsError, match="no file was left"):
        options = Int8Options(images=1, max_drop=-100.0, limit=1)
        export(checkpoint, "onnx", tmp_path / "x.onnx", int8=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_labels_agreement_decides_and_the_reason_is_given(
    save: Save, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tmp_path / "bare.pth", None)
    with pytest.raises(ConfigError, match="does not say which dataset"):
        export(checkpoint, "onnx", int8=Int8Options())
    monkeypatch.setattr(int8, "_LEAST_AGREEMENT", 0.3)
    photos = [str(scenes / "images" / "training")]
    options = Int8Options(calibrate=photos, images=2)
    found = report_of(export(checkpoint, "onnx", sizes=[(64, 64)], int8=options))
    assert found.before is None and found.after is None and found.images == 2
    assert "does not say which dataset" in found.unmeasured


@pytest.mark.parametrize("asked", [{"data_root": "nowhere"}, {"limit": 2}, {"max_drop": 2.0}])
def test_a_measurement_that_was_asked_for_is_made_or_refused(
    asked: dict[str, Any], save: Save, scenes: Path, tmp_path: Path
) -> None:
    config = load_config("cgrseg-t_synthetic", {"data.root": str(tmp_path / "nowhere")})
    checkpoint = save(tmp_path / "moved.pth", config.model_dump(mode="json"))
    photos = [str(scenes / "images" / "training")]
    with pytest.raises(CGRSegError, match="nowhere"):
        export(checkpoint, "onnx", int8=Int8Options(calibrate=photos, **asked))
    bare = save(tmp_path / "bare.pth", None)
    with pytest.raises(ConfigError, match=r"--max-drop: given, but the checkpoint does not say"):
        export(bare, "onnx", int8=Int8Options(calibrate=photos, **asked))


def test_newer_test_settings_are_said(save: Save, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "new.pth", None)
    content = torch.load(checkpoint, weights_only=True)
    content["meta"]["preprocessing"]["from_the_future"] = 1
    torch.save(content, checkpoint)
    with pytest.raises(WeightsError, match="test settings that cannot be used"):
        export(checkpoint, "onnx", int8=Int8Options(calibrate=[str(tmp_path)]))


def test_a_damaged_photo_is_named(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        options = Int8Options(calibrate=[str(broken)])
        export(checkpoint, "onnx", tmp_path / "small.onnx", int8=options)
    assert list(tmp_path.iterdir()) == [broken]


def test_photos_are_read_one_at_a_time(
    checkpoint: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path, test: Settings) -> Any:
        read.append(path)
        return read_pixels(path, test)

    monkeypatch.setattr(calibration, "read_pixels", counted)
    photos = sorted((scenes / "images" / "training").iterdir())
    model = draw_weights(create_model("cgrseg_t", 3, context_blocks=1))
    about = describe_export(model, model, "onnx", [(64, 96)], None, "pixels", "logits")
    done: list[tuple[int, int]] = []
    inputs = CalibrationInputs(
        photos, Settings(scale=(96, 64)), about, lambda *numbers: done.append(numbers)
    )
    assert len(inputs) == 6 and read == []
    walk = iter(inputs)
    first = next(walk)
    assert first.shape == (1, 64, 96, 3) and first.dtype == np.uint8
    assert read == photos[:1] and done == []
    second = next(walk)
    assert read == photos[:2] and done == [(1, 6)]
    again = list(inputs)
    assert len(again) == 6 and done[1:] == [(number, 6) for number in range(1, 7)]
    assert np.array_equal(again[0], first) and np.array_equal(again[1], second)


def test_float_network_behind_a_file_is_the_float_network(scenes: Path) -> None:
    """On images that need no fitting the measurement is the evaluation's, pixels in or not."""
    model = draw_weights(create_model("cgrseg_t", len(SYNTHETIC_CLASSES), context_blocks=1))
    config = load_config("cgrseg-t_synthetic", {"data.root": str(scenes)})
    test = Settings(scale=(96, 64))
    labeled, reason = find_labeled_split(config, "", config.data.train_split, 2, True, test)
    assert labeled is not None and reason == "" and labeled.images == 2
    wanted = evaluate_model(
        TorchBackend(model),
        labeled.dataset,
        test,
        limit=2,
    ).scores.mean_iou
    about_file = describe_export(model, model, "onnx", [(64, 96)], 3, "normalised", "logits")
    for takes in ("normalised", "pixels"):
        about = about_file.model_copy(update={"takes": takes})
        assert mean_iou(float_backend(model, about), labeled, test) == pytest.approx(wanted)
