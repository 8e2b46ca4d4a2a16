"""Checkpoints of other tools load without their classes, and nothing of a pickle is run."""

from __future__ import annotations

import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cgrseg.errors import WeightsError
from cgrseg.models import CGRSeg, create_model, load_model, load_weights, read_checkpoint
from tests.golden_weights import set_golden_weights
from tests.models.test_weights import CLASSES, fresh, predict, refusal


@pytest.fixture(scope="module")
def trained() -> CGRSeg:
    model = create_model("cgrseg_t", 3)
    set_golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def expected(trained: CGRSeg) -> Tensor:
    return predict(trained)


class History:
    """Pickled as mmengine's class, with its logged losses."""

    def __init__(self) -> None:
        self.max_length = 1_000_000
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 2])


@pytest.mark.parametrize("zipped", [True, False])
def test_mmengines_logs_are_read_without_mmengine(
    zipped: bool, trained: CGRSeg, expected: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "iter_160000.pth"
    place = "mmengine.logging.history_buffer"
    module = types.ModuleType(place)
    module.HistoryBuffer = History  # type: ignore[attr-defined]
    before = History.__module__, History.__qualname__, History.__name__
    History.__module__ = place
    History.__qualname__ = History.__name__ = "HistoryBuffer"
    hub = {
        "log_scalars": OrderedDict({"train/loss": History()}),
        "runtime_info": OrderedDict(iter=160000, best=np.float64(0.43)),
    }
    content = {"meta": {"dataset_meta": {"classes": tuple(CLASSES)}}, "message_hub": hub}
    try:
        sys.modules[place] = module
        sys.modules.setdefault("mmengine", types.ModuleType("mmengine"))
        sys.modules.setdefault("mmengine.logging", types.ModuleType("mmengine.logging"))
        torch.save(
            {**content, "state_dict": trained.state_dict()},
            path,
            _use_new_zipfile_serialization=zipped,
        )
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
            del sys.modules[name]
        History.__module__, History.__qualname__, History.__name__ = before
    assert b"mmengine.logging.history_buffer" in path.read_bytes()
    model = load_model(path)
    assert torch.equal(predict(model), expected) and model.classes == tuple(CLASSES)
    stored = read_checkpoint(path).extra["message_hub"]
    assert stored["runtime_info"] == {"iter": 160000, "best": 0.43}
    assert vars(stored["log_scalars"]["train/loss"])["_log_history"].tolist() == [0.5, 0.25]


def test_the_copies_of_mmcvs_averaging_are_named(
    trained: CGRSeg, expected: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    state = dict(trained.state_dict())
    learned = dict(trained.named_parameters())
    copies = {f"ema_{k.replace('.', '_')}": torch.zeros_like(v) for k, v in learned.items()}
    torch.save({"state_dict": {**state, **copies}, "meta": {}}, path)
    model = fresh()
    report = load_weights(model, path, verbose=False)
    assert torch.equal(predict(model), expected)
    assert not report.unexpected and set(copies) <= set(report.expected_unused)
    assert f"second set of weights ({len(copies)} names of mmcv's EMAHook" in str(report)


class Lies:
    """Unpickling it calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Lies(getattr, "text", "upper"),
        np.array([print, "object"], dtype=object),
        np.zeros(3, dtype=[("name", "S4"), ("size", "i4")]),
    ],
)
def test_stand_ins_do_nothing_of_what_a_pickle_asks(
    value: Any, trained: CGRSeg, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": trained.state_dict(), "meta": {"a": value}}, path)
    try:
        assert read_checkpoint(path).meta["a"] is None
    except WeightsError as error:
        assert "expected:" in str(error)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3, 256, 1, 1).to_sparse(),
        torch.zeros(3, 256, 1, 1, device="meta"),
        torch.zeros(3, 256, 1, 1, dtype=torch.complex64),
        torch.zeros(1).expand(10**9, 256, 1, 1),
    ],
)
def test_tensors_without_a_value_for_each_element_are_refused(
    value: Tensor, trained: CGRSeg, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**trained.state_dict(), "decode_head.conv_seg.weight": value}, path)
    assert "decode_head.conv_seg.weight is a" in refusal(path)


def test_a_compressed_checkpoint_is_refused(trained: CGRSeg, tmp_path: Path) -> None:
    path, packed = tmp_path / "weights.pth", tmp_path / "packed.pth"
    torch.save({"decode_head.a": torch.zeros(1_000_000)}, path)
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < 10_000
    assert "its members are compressed" in refusal(packed)


def test_blocks_are_counted_not_believed(trained: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    name = "decode_head.trans.transformer_blocks.{}.extra"
    for number in (77, 10**9):
        torch.save({**trained.state_dict(), name.format(number): torch.zeros(1)}, path)
        with pytest.raises(WeightsError):
            load_model(path)


def test_a_changed_byte_of_our_safetensors_is_told(trained: CGRSeg, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    load_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match="not those that were saved"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        *("[]", "5", "null", "{", "[" * 100_000),
        *('{"variant": 5}', '{"variant": "x"}', '{"num_classes": "x"}', '{"num_classes": -1}'),
        *('{"num_classes": 1000000000000}', '{"context_blocks": 1000000000}', '{"palette": 5}'),
    ],
)
def test_a_hub_folder_with_another_config(config: str, trained: CGRSeg, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=r"its config\.json cannot be used"):
        CGRSeg.from_pretrained(tmp_path)
    if not config.startswith("{") or config == "{":
        with pytest.raises(WeightsError, match=r"its config\.json cannot be used"):
            load_model(tmp_path)
