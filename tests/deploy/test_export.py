"""Exports prove themselves, predict like their checkpoint, and leave nothing half-done."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cgrseg
from cgrseg.config.schema import TestConfig as Settings
from cgrseg.deploy import Tolerance, export
from cgrseg.deploy.staging import staged
from cgrseg.deploy.verify import verify
from cgrseg.errors import ConfigError, EnvironmentProblem, WeightsError
from cgrseg.formats import describe, load_format
from cgrseg.inference import Predictor
from cgrseg.inference.exported_backend import open_exported
from cgrseg.models import CGRSeg
from tests.deploy.conftest import small_network, write_checkpoint
from tests.inference.fixtures import photo
from tests.small_variant import small_variant


@pytest.fixture(scope="module")
def program(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "small.pt2"
    result = export(checkpoint, "pt2", out, sizes=[(64, 96)])
    assert result.path == out
    assert [(check.batch, check.images) for check in result.checks] == [(1, 3), (2, 4)]
    assert all(check.within(Tolerance()) for check in result.checks)
    assert [path.name for path in out.parent.iterdir()] == ["small.pt2"]
    return out


def test_file_says_what_it_is(program: Path, checkpoint: Path) -> None:
    about = describe(program)
    assert about.kind == "pt2" and about.variant == "cgrseg_t"
    assert about.classes == ["sky", "road", "tree", "car", "house"]
    assert about.palette is not None and about.palette[1] == (128, 64, 128)
    assert about.mean == [123.675, 116.28, 103.53] and about.std == [58.395, 57.12, 57.375]
    assert about.sizes == [(64, 96)] and about.batch is None
    assert about.source == checkpoint.name and about.version == cgrseg.__version__
    assert about.test == {"scale": [96, 64]}
    assert str(checkpoint.parent).encode() not in program.read_bytes()


def test_prediction_is_the_checkpoints(program: Path, checkpoint: Path) -> None:
    """A photo that becomes the file's own input, and one that is padded to it."""
    exported, original = Predictor.from_pretrained(program), Predictor.from_pretrained(checkpoint)
    picture = photo(128, 192)
    found, wanted = exported(picture), original(picture)
    assert found.classes == wanted.classes and found.palette == wanted.palette
    assert len(np.unique(wanted.labels)) > 1
    assert (found.labels == wanted.labels).mean() > 0.999
    assert exported(photo(50, 40)).labels.shape == (50, 40)
    several = exported([picture, photo(128, 192, seed=1), photo(90, 30)], batch_size=2)
    assert (several[0].labels == found.labels).mean() > 0.999


def test_what_one_size_cannot_do_is_said(program: Path) -> None:
    predictor = Predictor.from_pretrained(program, test=Settings(ratios=[0.5, 1.0]))
    with pytest.raises(ConfigError, match="64x96 only"):
        predictor(photo(64, 96))
    predictor.test = Settings(mode="slide", crop_size=(64, 64), stride=(40, 40))
    with pytest.raises(ConfigError, match=r"test\.crop_size"):
        predictor(photo(64, 96))
    predictor.test = Settings(
        mode="slide", crop_size=(64, 96), stride=(40, 60), resize="none", flip=True
    )
    assert predictor(photo(100, 150)).labels.shape == (100, 150)
    with pytest.raises(EnvironmentProblem, match="run on the CPU"):
        Predictor.from_pretrained(program, "cuda")
    for name in ("compile", "channels_last"):
        with pytest.raises(ConfigError, match=f"{name}: given for .* an exported file"):
            Predictor.from_pretrained(program, **{name: True})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision bf16"):
        Predictor.from_pretrained(program, precision="bf16")


@pytest.mark.slow
def test_any_size_means_the_smallest_too(checkpoint: Path, tmp_path: Path) -> None:
    """Below what the program takes, inputs are padded; above it they are refused."""
    result = export(checkpoint, "pt2", tmp_path / "any.pt2")
    assert {(32, 32), (64, 32), (32, 96), (512, 704)} <= {check.size for check in result.checks}
    exported, original = (
        Predictor.from_pretrained(path, test=Settings(resize="none"))
        for path in (result.path, checkpoint)
    )
    about = exported.backend.description  # type: ignore[attr-defined]
    assert 32 <= about.smallest <= 96 and about.largest == 8192
    assert exported(photo(20, 300)).labels.shape == (20, 300)
    picture = photo(90, 128)
    assert (exported(picture).labels == original(picture).labels).mean() > 0.999
    with pytest.raises(ConfigError, match="sides of at most 8192"):
        exported.backend.logits(torch.zeros(1, 3, 32, 8224))


def test_nothing_is_overwritten_unasked(program: Path, checkpoint: Path) -> None:
    before = program.read_bytes()
    with pytest.raises(ConfigError, match="overwrite=True"):
        export(checkpoint, "pt2", program, sizes=[(64, 96)])
    assert program.read_bytes() == before


def test_out_of_tolerance_leaves_no_file(program: Path, network: CGRSeg, tmp_path: Path) -> None:
    target = tmp_path / "never.pt2"
    with (
        pytest.raises(WeightsError, match="no file was left"),
        staged([target]) as draft,
    ):
        draft.write_bytes(program.read_bytes())
        verify(open_exported(draft), network, [(64, 96)], [1], Tolerance(logits=0.0))
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_noticed(program: Path, network: CGRSeg) -> None:
    from copy import deepcopy

    other = deepcopy(network)
    other.decode_head.conv_seg.weight.data[0] += 0.05
    with pytest.raises(WeightsError, match="logits differ by"):
        verify(open_exported(program), other, [(64, 96)], [1], Tolerance())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "onnx", "sizes": [(64, 100)]}, "round up: 64x128"),
        ({"kind": "aoti"}, "--size 512x512"),
        ({"kind": "onnx", "out": "model.pt2"}, "ends in .onnx"),
        ({"kind": "onnx", "out": "."}, r"for example model\.onnx"),
        ({"kind": "openvino", "out": "model.XML"}, r"for example model\.xml"),
        ({"kind": "pt2", "opset": 20}, "--opset: 20, with the format pt2"),
    ],
)
def test_settings_that_cannot_be(
    network: CGRSeg, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(network, **settings)  # type: ignore[arg-type]


def test_a_wrong_ending_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"for example best\.onnx"):
        export("/no/such/checkpoint.pth", "onnx", "best.ONNX")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with (
        pytest.raises(EnvironmentProblem, match=r"model\.onnx: the disk is full"),
        staged([target]),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x" * 4096)
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.xml"
    target.write_text("old")
    with pytest.raises(EnvironmentProblem), staged([target]) as draft:
        draft.write_text("new")
        raise OSError(errno.ENOSPC, "no space")
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="overwrite=True"), staged([target]) as draft:
        draft.write_text("mine")
        target.write_text("another's")
    assert target.read_text() == "another's" and len(list(tmp_path.iterdir())) == 1
    with staged([target], overwrite=True) as draft:
        draft.write_text("mine")
    assert target.read_text() == "mine"


@pytest.mark.parametrize("old", [True, False])
def test_a_pair_is_replaced_whole_or_not_at_all(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.xml"
    places = (target, target.with_suffix(".bin"))
    if old:
        for place in places:
            place.write_text("old")
    replace = os.replace

    def failing(source: Path, place: Path) -> None:
        if place == target:
            raise OSError(errno.EACCES, "no")
        replace(source, place)

    monkeypatch.setattr(os, "replace", failing)
    with (
        pytest.raises(EnvironmentProblem, match="writing is not permitted"),
        staged([target.with_suffix(".bin"), target], overwrite=True) as draft,
    ):
        for part in (draft.with_suffix(".bin"), draft):
            part.write_text("new")
    assert sorted(tmp_path.iterdir()) == (sorted(places) if old else [])
    assert all(place.read_text() == "old" for place in places if old)


@pytest.mark.parametrize(
    ("name", "package"), [("model.onnx", "onnxruntime"), ("model.xml", "openvino")]
)
def test_missing_runtime(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(EnvironmentProblem, match=package) as caught:
        open_exported(tmp_path / name)
    assert 'pip install "cgrseg[export]"' in str(caught.value)


def test_damaged_files(program: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(program.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=r"cut\.pt2: a file of .* bytes that cannot be read"):
        open_exported(cut)
    with pytest.raises(WeightsError, match="No such file"):
        open_exported(tmp_path / "absent.onnx")
    foreign = tmp_path / "foreign.pt2"
    torch.save({"a": torch.zeros(3)}, foreign)
    with pytest.raises(WeightsError, match="without the description"):
        open_exported(foreign)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "onnx", "openvino"])
def test_ssa_head(kind: str, tmp_path: Path) -> None:
    export_format = load_format(kind)
    for package in export_format.packages:
        pytest.importorskip(package, reason="needs the extra [export]")
    with small_variant() as name:
        model = small_network(name, head="ssa")
        path = write_checkpoint(model, tmp_path / "small.pth")
        out = tmp_path / f"small{export_format.suffix}"
        result = export(path, kind, out, sizes=[(64, 96)])
        wanted = Predictor.from_pretrained(path)(photo(128, 192))
    assert all(check.within(Tolerance()) for check in result.checks)
    assert describe(out).head == "ssa"
    found = Predictor.from_pretrained(out)(photo(128, 192))
    assert len(np.unique(found.labels)) > 1
    assert (found.labels == wanted.labels).mean() > 0.999
