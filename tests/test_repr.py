"""`repr` of what people hold in Python: a short line, no arrays, the facts that matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cgrseg.config import load_config
from cgrseg.config.schema import TestConfig
from cgrseg.data.check.report import CheckReport
from cgrseg.data.convert.format import ConversionReport
from cgrseg.datasets import get_spec
from cgrseg.evaluation.result import EvaluationResult
from cgrseg.inference import Prediction, Predictor, TorchBackend
from cgrseg.inference.compiled_backend import CompiledBackend
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.results import FolderReport
from cgrseg.models import create_model
from cgrseg.models.weights import LoadReport
from cgrseg.training.runner import TrainResult
from tests.inference.fixtures import description

NAMES = ("sky", "road", "car", "tree", "house")


def test_one_line_each(tmp_path: Path) -> None:
    model = create_model("cgrseg_t", num_classes=5)
    palette = tuple((k, k, k) for k in range(5))
    labels = np.zeros((10, 20), np.uint8)
    labels[:3], labels[3] = 1, 2
    image = np.zeros((10, 20, 3), np.uint8)
    counts = np.ones((2, 3, 5), np.int64)
    evaluated = EvaluationResult(
        NAMES, ("a", "b"), np.eye(5, dtype=np.int64), counts, settings={"dataset": "camvid"}
    )
    compiled = CompiledBackend(model, "cpu", folder=tmp_path)
    config = load_config("cgrseg-t_camvid")
    objects = {
        Predictor(TorchBackend(model, "cpu"), TestConfig(), NAMES): "Predictor(TorchBackend("
        "cgrseg_t, cpu, fp32), 5 classes (sky, road, car, tree, ...), whole images, "
        "scale 2048x512)",
        compiled: "CompiledBackend(cgrseg_t, cpu, fp32, compiled sizes: none yet)",
        ExportedBackend(description(), lambda array: array, "x.onnx"): "ExportedBackend(x.onnx, "
        "onnx, cpu)",
    }
    lines = {repr(found): expected for found, expected in objects.items()}
    lines |= {
        repr(Prediction(labels, NAMES, palette, image, source=Path("a.jpg"))): "Prediction(a.jpg, "
        "10x20 pixels: sky 60 %, road 30 %, car 10 %)",
        repr(Prediction(labels, NAMES, palette, image, frame=3)): "Prediction(frame 3, 10x20 "
        "pixels: sky 60 %, road 30 %, car 10 %)",
        repr(config): "Config('cgrseg-t_camvid': cgrseg_t on camvid in data/camvid, 1400 "
        "iterations of 8 images, lr 0.001, auto, into work_dirs/cgrseg-t_camvid)",
        str(config): repr(config),
        repr(get_spec("camvid")): "DatasetSpec('camvid', 11 classes (sky, building, pole, road, "
        "...), splits train, val, test)",
        repr(get_spec("camvid").label_rule): "LabelRule(11 classes: "
        f"{get_spec('camvid').label_rule.meaning})",
        repr(evaluated): "EvaluationResult(camvid 2 images, 5 classes: mIoU 100.00 %, "
        "aAcc 100.00 %)",
        repr(evaluated.scores): "SegmentationScores(mIoU 100.00 %, mAcc 100.00 %, "
        "aAcc 100.00 %, 5 classes)",
        repr(LoadReport("a.pth", loaded=["x"] * 9, missing=["y"])): "LoadReport(a.pth: 9 loaded, "
        "1 missing, 0 unexpected, 0 mismatched, 0 fresh)",
        repr(FolderReport(done=[Path("a")])): "FolderReport(1 done, 0 kept, 0 failed)",
        repr(CheckReport("custom", "mine", NAMES)): "CheckReport(custom in mine: 0 errors, "
        "0 warnings, 0 notes)",
        repr(ConversionReport("rgb", Path("out"), NAMES)): "ConversionReport(rgb into out: "
        "0 written, 0 kept, 0 skipped)",
    }
    for found, expected in lines.items():
        assert found == expected
    result = TrainResult(Path("run"), None, evaluated.scores, {"mIoU": 1.0}, 5, Path("latest.pth"))
    assert "\n" not in repr(result) and "array" not in repr(result)
    assert repr(model).splitlines()[1] == "  cgrseg_t, num_classes=5, context_blocks=5, head=dpg"
