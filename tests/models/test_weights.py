"""Weights load, or say why not: every form of file that people have."""

from __future__ import annotations

import argparse
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cgrseg.errors import WeightsError
from cgrseg.models import CGRSeg, create_model, load_model, load_weights, read_checkpoint
from cgrseg.models.efficientformer_v2 import EfficientFormerV2
from cgrseg.models.weights import save_safetensors
from tests.golden_weights import golden_input, set_golden_weights

CLASSES = ["road", "sky", "tree"]
PALETTE = [[128, 64, 128], [70, 130, 180], [107, 142, 35]]


@pytest.fixture(scope="module")
def trained() -> CGRSeg:
    model = create_model("cgrseg_t", 3)
    set_golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def expected(trained: CGRSeg) -> Tensor:
    return predict(trained)


@torch.no_grad()
def predict(model: CGRSeg) -> Tensor:
    return model.eval()(golden_input("input_64x64", (1, 3, 64, 64)))


def fresh(classes: int = 3) -> CGRSeg:
    return create_model("cgrseg_t", classes)


def refusal(path: Path, model: CGRSeg | None = None, part: Any = "all") -> str:
    """The message of a refused load; the network must be unchanged by it."""
    model = model or fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path, part=part, verbose=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    message = str(caught.value)
    assert str(path) in message and "expected:" in message and "what to do:" in message
    return message


def wrapped(state: dict[str, Tensor], form: str) -> Any:
    published_meta = {
        "mmseg_version": "0.27.0",
        "CLASSES": tuple(CLASSES),
        "PALETTE": PALETTE,
        "iter": 160000,
        "best_score": np.float64(0.436),
        "best_iter": np.int64(156000),
        "scores": np.array([0.1, 0.2], dtype=np.float32),
    }
    return {
        "bare": state,
        "ordered": OrderedDict(state),
        "published": {"meta": published_meta, "state_dict": state, "optimizer": {"state": {}}},
        "data_parallel": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        "averaged": {
            "state_dict": {
                "n_averaged": torch.tensor(7),
                **{f"module.{k}": v for k, v in state.items()},
            }
        },
        "averaged_by_timm": {
            "state_dict": {k: torch.zeros_like(v) for k, v in state.items()},
            "state_dict_ema": state,
        },
        # mmengine writes the averaged weights as `state_dict`, the raw ones beside them.
        "averaged_by_mmengine": {
            "state_dict": state,
            "ema_state_dict": {
                "steps": torch.tensor(7),
                **{f"module.{k}": torch.zeros_like(v) for k, v in state.items()},
            },
        },
        "with_arguments": {"model": state, "args": argparse.Namespace(lr=0.1, name="s1")},
    }[form]


FORMS = [
    "bare",
    "ordered",
    "published",
    "data_parallel",
    "compiled",
    "averaged",
    "averaged_by_timm",
    "averaged_by_mmengine",
    "with_arguments",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_pth_gives_the_same_network(
    form: str, trained: CGRSeg, expected: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrapped(dict(trained.state_dict()), form), path)
    model = fresh()
    report = load_weights(model, path, verbose=False)
    assert torch.equal(predict(model), expected)
    assert not (report.missing or report.unexpected or report.mismatched or report.fresh)
    assert any("the file also has" in note for note in report.notes) == ("averaged_by" in form)
    # Index tables are constants of the architecture; everything else comes from the file.
    constants = [k for k in model.state_dict() if "attention_bias_idxs" in k]
    assert sorted(report.loaded + constants) == sorted(model.state_dict())
    assert torch.equal(predict(load_model(path)), expected)


def test_old_pickles_without_zip_load_too(
    trained: CGRSeg, expected: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(dict(trained.state_dict()), path, _use_new_zipfile_serialization=False)
    assert torch.equal(predict(load_model(path)), expected)


def test_classes_and_palette_come_along_from_published_files(
    trained: CGRSeg, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrapped(dict(trained.state_dict()), "published"), path)
    model = load_model(path)
    assert model.classes == tuple(CLASSES)
    assert model.palette == tuple(tuple(colour) for colour in PALETTE)


def test_a_wrong_number_of_class_names_is_said(
    trained: CGRSeg, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meta = {"classes": ["a", "b"], "palette": [[0, 0, 0]]}
    torch.save({"state_dict": trained.state_dict(), "meta": meta}, tmp_path / "x.pth")
    model = load_model(tmp_path / "x.pth", verbose=False)
    assert model.classes == ("class 0", "class 1", "class 2")
    assert model.palette is None
    assert "x.pth: it holds 2 class names for 3 classes" in caplog.text
    assert "x.pth: it holds 1 colors for 3 classes" in caplog.text


@pytest.mark.parametrize("blocks", [5, 6])
def test_both_forms_of_b_are_told_from_the_file(blocks: int, tmp_path: Path) -> None:
    model = create_model("cgrseg_b", 4, context_blocks=blocks)
    set_golden_weights(model)
    path = tmp_path / "b.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    loaded = load_model(path)
    assert loaded.context_blocks == blocks and loaded.variant == "cgrseg_b"
    assert torch.equal(predict(loaded), predict(model))
    message = refusal(path, create_model("cgrseg_b", 4, context_blocks=11 - blocks))
    assert f"cgrseg_b with {blocks} context blocks" in message
    assert f"cgrseg_b with {11 - blocks} context blocks" in message


def test_saved_folder_round_trip(expected: Tensor, tmp_path: Path) -> None:
    preprocessing = {"scale": [512, 512]}
    model = create_model(
        "cgrseg_t", 3, classes=CLASSES, palette=PALETTE, preprocessing=preprocessing
    )
    set_golden_weights(model)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["classes"] == CLASSES and config["palette"] == PALETTE
    for loaded in (CGRSeg.from_pretrained(tmp_path / "saved"), load_model(tmp_path / "saved")):
        assert torch.equal(predict(loaded), expected)
        assert loaded.classes == tuple(CLASSES)
        assert loaded.preprocessing == preprocessing
        assert not loaded.training


def test_another_number_of_classes_keeps_everything_but_the_classifier(
    trained: CGRSeg, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path)
    model = fresh(21)
    classifier = model.decode_head.conv_seg.weight.clone()
    report = load_weights(model, path)
    assert torch.equal(model.decode_head.conv_seg.weight, classifier)
    assert torch.equal(
        model.decode_head.linear_fuse.conv.weight, trained.decode_head.linear_fuse.conv.weight
    )
    told = "the classifier starts from random weights: the file has 3 classes, this network 21"
    assert report.fresh == ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"]
    assert told in str(report) and told in capsys.readouterr().err


def test_what_is_saved_is_what_the_network_is_now(tmp_path: Path) -> None:
    model = create_model("cgrseg_t", 3, channels=64, context_blocks=2)
    set_golden_weights(model)
    model.classes = tuple(CLASSES)
    model.palette = tuple(np.array(PALETTE, dtype=np.uint8))  # type: ignore[assignment]
    model.save_pretrained(tmp_path)
    loaded = CGRSeg.from_pretrained(tmp_path)
    assert loaded.classes == tuple(CLASSES)
    assert loaded.palette == tuple(tuple(colour) for colour in PALETTE)
    assert torch.equal(predict(loaded), predict(model))
    assert torch.equal(predict(load_model(tmp_path)), predict(model))
    lone = load_model(tmp_path / "model.safetensors")
    assert lone.classes is None and torch.equal(predict(lone), predict(model))


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    for number in range(8):  # the safetensors library orders its metadata at random
        save_safetensors(layer, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert torch.equal(load_file(tmp_path / "0.safetensors")["weight"], layer.weight)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".pte", ".xml", ".param"])
def test_an_export_is_named_as_such(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"net{suffix}").write_bytes(b"\x08\x0a content")
    with pytest.raises(WeightsError, match="the file is an export"):
        read_checkpoint(tmp_path / f"net{suffix}")


def test_saved_folder_with_another_number_of_classes_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_model("cgrseg_t", 3, classes=CLASSES, palette=PALETTE).save_pretrained(tmp_path)
    model = CGRSeg.from_pretrained(tmp_path, num_classes=7)
    assert model.num_classes == 7 and model.classes is None
    assert "starts from random weights" in capsys.readouterr().err


def test_a_classifier_of_other_classes_is_said(trained: CGRSeg, tmp_path: Path) -> None:
    state = {"state_dict": trained.state_dict()}
    torch.save({**state, "meta": {"classes": list(CLASSES)}}, tmp_path / "x.pth")
    same = create_model("cgrseg_t", 3, classes=CLASSES)
    assert not [note for note in load_weights(same, tmp_path / "x.pth").notes if "class" in note]
    turned = create_model("cgrseg_t", 3, classes=CLASSES[::-1])
    notes = load_weights(turned, tmp_path / "x.pth").notes
    assert [note for note in notes if f"id 0: {CLASSES[0]!r} became {CLASSES[2]!r}" in note]
    # Names that are numbers say nothing about the classifier.
    torch.save({**state, "meta": {"classes": ["one"]}}, tmp_path / "x.pth")
    assert not [note for note in load_weights(turned, tmp_path / "x.pth").notes if "class" in note]


def test_names_of_a_saved_folder_that_do_not_fit_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create_model("cgrseg_t", 3, classes=CLASSES, palette=PALETTE).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["classes"] = config["classes"][:2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert CGRSeg.from_pretrained(tmp_path).classes is None
    assert "it holds 2 entries of classes for 3 classes" in caplog.text
    assert load_model(tmp_path).classes == ("class 0", "class 1", "class 2")
    assert "it holds 2 class names for 3 classes" in caplog.text


def test_arguments_of_older_hub_clients_are_understood(tmp_path: Path) -> None:
    create_model("cgrseg_t", 3).save_pretrained(tmp_path)
    model = CGRSeg._from_pretrained(
        model_id=str(tmp_path), proxies=None, resume_download=None, strict=False, num_classes=3
    )
    assert model.num_classes == 3


def test_an_unreachable_hub_id_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="the hub did not give it") as caught:
        load_model("nobody/no-such-network")
    assert "what to do:" in str(caught.value)


def test_array_palettes_of_old_files_are_read(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    meta = {"CLASSES": tuple(CLASSES), "PALETTE": np.array(PALETTE)}
    torch.save({"state_dict": trained.state_dict(), "meta": meta}, path)
    assert load_model(path).palette == tuple(tuple(colour) for colour in PALETTE)


def test_names_of_numpy_1_are_read(trained: CGRSeg, expected: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    # Protocol 2 writes module names as lines of text, so one can stand in for the other.
    torch.save(
        wrapped(dict(trained.state_dict()), "published"),
        path,
        _use_new_zipfile_serialization=False,
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert torch.equal(predict(load_model(path)), expected)


def test_half_precision_is_widened_and_said(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    halves = {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    torch.save(halves, path)
    model = fresh()
    report = load_weights(model, path, verbose=False)
    assert "half precision" in str(report)
    for name, value in model.state_dict().items():
        assert torch.equal(value, halves[name].to(value.dtype)), name


def test_integers_are_no_weights(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({k: v.to(torch.int8) for k, v in trained.state_dict().items()}, path)
    assert "torch.int8 in the file, not a float" in refusal(path)


def test_classifier_that_contradicts_itself_is_refused(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = dict(trained.state_dict())
    state["decode_head.conv_seg.bias"] = torch.zeros(4)
    torch.save(state, path)
    assert "decode_head.conv_seg.bias ((4,) in the file, (3,) here)" in refusal(path)


def test_cut_anywhere_a_file_is_called_damaged(tmp_path: Path) -> None:
    small = {"state_dict": {"decode_head.a": torch.zeros(5)}, "meta": {"text": "x" * 50}}
    for zipped in (True, False):
        path = tmp_path / f"whole_{zipped}.pth"
        torch.save(small, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        for length in range(1, len(content) - 1, max(1, len(content) // 25)):
            cut = tmp_path / "cut.pth"
            cut.write_bytes(content[:length])
            with pytest.raises(WeightsError) as caught:
                read_checkpoint(cut)
            # Cut inside a name, an old pickle cannot be told from one that holds that name.
            assert not zipped or "run code" not in str(caught.value), length


def imagenet_state() -> dict[str, Tensor]:
    """The authors' form: published names, ImageNet's tables and classifier, none of 512 pixels."""
    backbone = EfficientFormerV2("efficientformerv2_s1")
    set_golden_weights(backbone)
    state = {k: v for k, v in backbone.state_dict().items() if not k.endswith("_seg")}
    state |= {k: torch.ones_like(v) for k, v in state.items() if k.endswith(".attention_biases")}
    for name in ("norm.weight", "norm.running_mean", "head.weight", "dist_head.bias"):
        state[name] = torch.zeros(3)
    return state


def test_imagenet_backbone_of_its_authors(tmp_path: Path) -> None:
    state = imagenet_state()
    path = tmp_path / "eformer_s1_450.pth"
    torch.save({"model": state}, path)
    model = fresh()
    head = {k: v.clone() for k, v in model.decode_head.state_dict().items()}
    report = load_weights(model, path, part="backbone", verbose=False)
    assert not (report.missing or report.unexpected or report.mismatched)
    assert sum(n.endswith("attention_biases_seg") for n in report.expected_missing) == 5
    assert len([n for n in report.expected_unused if "head" in n or ".norm." in n]) == 4
    loaded = model.backbone.state_dict()
    for name, value in state.items():
        if name in loaded and not name.endswith("attention_bias_idxs"):
            assert torch.equal(loaded[name], value), name
    assert all(torch.equal(head[k], v) for k, v in model.decode_head.state_dict().items())


def test_imagenet_backbone_without_one_convolution_is_refused(tmp_path: Path) -> None:
    state = imagenet_state()
    del state["network.2.1.mlp.mid.weight"]
    path = tmp_path / "eformer_s1_450.pth"
    torch.save({"model": state}, path)
    message = refusal(path, part="backbone")
    assert "1 of" in message and "backbone.network.2.1.mlp.mid.weight" in message


def test_backbone_file_is_no_segmentation_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "eformer_s1_450.pth"
    torch.save({"model": imagenet_state()}, path)
    assert "without a segmentation head" in refusal(path)
    with pytest.raises(WeightsError, match="another architecture"):
        load_model(path)


def test_backbone_alone_of_a_segmentation_checkpoint(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path)
    model = fresh(9)
    load_weights(model, path, part="backbone", verbose=False)
    stem = "patch_embed.0.weight"
    assert torch.equal(model.backbone.state_dict()[stem], trained.backbone.state_dict()[stem])
    assert not torch.equal(
        model.decode_head.linear_fuse.conv.weight, trained.decode_head.linear_fuse.conv.weight
    )


class RunsCode:
    """Unpickling it calls a function."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def test_five_damaged_files_have_five_different_messages(
    trained: CGRSeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = trained.state_dict()

    renamed = tmp_path / "renamed.pth"
    torch.save(
        {k.replace("network.2.1.mlp", "network.2.1.ffn"): v for k, v in state.items()}, renamed
    )
    shapes = tmp_path / "shapes.pth"
    torch.save({k: v[:-1] if "meta.1.mlp.fc1" in k else v for k, v in state.items()}, shapes)
    truncated = tmp_path / "truncated.pth"
    torch.save(dict(state), truncated)
    truncated.write_bytes(truncated.read_bytes()[:1_000_000])
    unsafe = tmp_path / "unsafe.pth"
    torch.save({"state_dict": dict(state), "meta": RunsCode()}, unsafe)
    foreign = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3)}}, foreign)

    told = {
        renamed: ["18 of 952 tensors", "backbone.network.2.1.mlp", "backbone.network.2.1.ffn"],
        shapes: ["2 tensors have another shape", "(239,) in the file, (240,) here"],
        truncated: ["truncated or damaged", "1,000,000 bytes"],
        unsafe: ["run code", "posix.system" if os.name == "posix" else "nt.system"],
        foreign: ["another architecture", "layer1.0.conv1.weight"],
    }
    messages = {path: refusal(path) for path in told}
    for path, parts in told.items():
        for part in parts:
            assert part in messages[path]
            others = [text for other, text in messages.items() if other != path]
            assert not any(part in text for text in others)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n....", "another kind"),
    ],
)
def test_files_that_are_no_weights(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert told in refusal(path)


def test_truncated_safetensors_and_folder_without_weights(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, path)
    path.write_bytes(path.read_bytes()[:500_000])
    assert "truncated or damaged" in refusal(path)
    (tmp_path / "empty").mkdir()
    assert "no model.safetensors" in refusal(tmp_path / "empty")


def test_missing_file_names_what_lies_there(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "latest.pth")
    assert "latest.pth" in refusal(tmp_path / "last.pth")


def test_weights_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3}, path)
    assert "holds no weights" in refusal(path)


def test_smaller_variant_is_named(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path)
    message = refusal(path, create_model("cgrseg_b", 3))
    assert "cgrseg_t with 5" in message and "cgrseg_b with 5" in message


def test_read_checkpoint_keeps_what_lies_beside(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    content = {"state_dict": trained.state_dict(), "meta": {"iteration": 12}, "optimizer": {"a": 1}}
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.meta == {"iteration": 12} and checkpoint.extra == {"optimizer": {"a": 1}}
