"""Overrides: what a text is read as, and where it lands."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrseg.config import load_config
from cgrseg.config.settings import merge, parse_overrides, parse_value, split_override
from cgrseg.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("4", 4),
        (".5", 0.5),
        ("1_000", 1000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[1, 2.5]", [1, 2.5]),
        ("(512, 512)", (512, 512)),
        ("512,512", (512, 512)),
        ('"null"', "null"),
        ("'4'", "4"),
        ('{"vehicle": ["car", "bus"]}', {"vehicle": ["car", "bus"]}),
        ("{'car': 'vehicle'}", {"car": "vehicle"}),
        ("data/my set", "data/my set"),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("007", "007"),
        ("", ""),
        ("[1, 2", "[1, 2"),
        ("{1, 2}", "{1, 2}"),
        ("b'x'", "b'x'"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_value_is_read_as_a_person_means_it(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(plain)
def test_json_text_comes_back_as_it_was(value: object) -> None:
    assert parse_value(json.dumps(value)) == value


@given(plain)
def test_python_text_comes_back_as_it_was(value: object) -> None:
    text = repr(value)
    try:
        expected = json.loads(text)
    except ValueError:
        expected = value
    assert parse_value(text) == expected


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    value = parse_value(text)
    assert not (isinstance(value, float) and math.isnan(value))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_text_setting_takes_any_quoted_text_exactly(text: str) -> None:
    config = load_config("cgrseg-t_custom", [f"data.root={json.dumps(text)}"])
    assert config.data.root == text


@given(st.floats(min_value=1e-12, max_value=1e3))
def test_a_number_setting_takes_any_number_exactly(rate: float) -> None:
    assert load_config("cgrseg-t_custom", [f"optimizer.lr={rate!r}"]).optimizer.lr == rate


@pytest.mark.parametrize("raw", ["2024", "true", "1e5", "[1]"])
def test_text_is_meant_where_the_setting_can_only_hold_text(raw: str) -> None:
    assert load_config("cgrseg-t_custom", [f"name={raw}"]).name == raw


def test_null_stays_null_where_the_setting_may_be_empty() -> None:
    changed = load_config("cgrseg-t_custom", ["model.pretrained=a.pth", "work_dir=2024"])
    assert (changed.model.pretrained, changed.work_dir) == ("a.pth", "2024")
    assert load_config("cgrseg-t_custom", ["model.pretrained=null"]).model.pretrained is None


def test_later_override_wins_and_order_of_others_is_kept() -> None:
    parsed = parse_overrides(["optimizer.lr=1", "train.seed=3", "optimizer.lr=2"])
    assert list(parsed.items()) == [("train.seed", 3), ("optimizer.lr", 2)]


def test_value_may_hold_equals_signs() -> None:
    assert split_override("data.root=a=b=c") == ("data.root", "a=b=c")


@pytest.mark.parametrize("text", ["optimizer.lr", "=3", " =3", ""])
def test_text_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"key=value.*\n.*optimizer\.lr=1e-4"):
        split_override(text)


def test_merge_reaches_into_sections_and_replaces_whole_settings() -> None:
    tree = {"data": {"root": "a", "merge": {"x": ["y"]}}, "test": {"ratios": [1.0, 2.0]}}
    changed = merge(tree, {"data": {"root": "b"}, "test.ratios": [0.5], "data.merge": {"z": []}})
    assert changed == {"data": {"root": "b", "merge": {"z": []}}, "test": {"ratios": [0.5]}}
    assert tree["data"] == {"root": "a", "merge": {"x": ["y"]}}


def test_entries_of_a_table_can_be_set_one_by_one() -> None:
    config = load_config(
        "cgrseg-t_custom",
        ['data.merge.vehicle=["car", "bus"]', "data.rename.bike=bicycle", "data.split_lists.a=b"],
    )
    assert config.data.merge == {"vehicle": ["car", "bus"]}
    assert config.data.rename == {"bike": "bicycle"}
    assert config.data.split_lists == {"a": "b"}


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=1", "optimizer.lr"),
        ("optimizer.lrr=1", "optimizer.lr"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("schedul.max_iters=3", "schedule.max_iters"),
        ("max_iter=3", "schedule.max_iters"),
        ("train.batchsize=3", "train.batch_size"),
        ("ratio_rang=3", "augment.ratio_range"),
        ("test.crop_sise=3", "test.crop_size"),
        ("photometric.hue=3", "augment.photometric.hue"),
        ("augment.photometric.heu=3", "augment.photometric.hue"),
    ],
)
def test_unknown_setting_names_the_nearest(override: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="no such setting") as caught:
        load_config("cgrseg-t_custom", [override])
    assert f"did you mean {meant}?" in str(caught.value)


def test_unknown_setting_in_a_table_of_values_is_the_same_error() -> None:
    with pytest.raises(ConfigError, match=r"did you mean optimizer\.lr\?"):
        load_config("cgrseg-t_custom", {"optimizer": {"l_r": 1}})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        # mmsegmentation 0.x and 1.x
        ("data.train.data_root", "data.root"),
        ("data.train.reduce_zero_label", "data.zero_is_ignore"),
        ("samples_per_gpu", "train.batch_size"),
        ("data.val.samples_per_gpu", "train.batch_size"),
        # Ultralytics, Lightning, timm, transformers
        ("lr0", "optimizer.lr"),
        ("imgsz", "augment.crop_size"),
        ("batch", "train.batch_size"),
        ("accumulate_grad_batches", "train.accumulate"),
        ("gradient_clip_val", "optimizer.clip_norm"),
        ("drop-path-rate", "model.drop_path"),
        ("model_ema_decay", "train.ema_decay"),
        ("learning_rate", "optimizer.lr"),
        ("per_device_train_batch_size", "train.batch_size"),
        ("trainer.maxSteps", "schedule.max_iters"),
        ("output_dir", "work_dir"),
    ],
)
def test_names_of_other_tools_are_matched_by_meaning(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="no such setting") as caught:
        load_config("cgrseg-t_custom", [f"{key}=1"])
    assert str(caught.value).endswith(f"what to do: did you mean {meant}?")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("evaluation.metric", "cgrseg evaluate --metric"),
        ("train.epochs", "schedule.max_iters to epochs x images"),
        ("num_train_epochs", "schedule.max_iters to epochs x images"),
        ("resume_from", "--resume-from CHECKPOINT"),
        ("model.backbone", "set model.name"),
        ("nc", "set data.classes"),
        ("optimizer.type", "set optimizer.name to adamw or muon"),
        ("lr_scheduler", "section schedule"),
        ("per_device_eval_batch_size", "leave it out"),
    ],
)
def test_names_without_a_counterpart_say_what_to_do(key: str, told: str) -> None:
    with pytest.raises(ConfigError, match="no such setting") as caught:
        load_config("cgrseg-t_custom", [f"{key}=1"])
    assert told in str(caught.value) and "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *("data.train.pipeline", "optimizer.eps", "augment.photometric.gamma", "norm_cfg.type"),
        *("loss.name", "metrics.scale", "augment.mixup", "train.foo", "cutout", "mixup"),
    ],
)
def test_alike_letters_alone_propose_nothing(key: str) -> None:
    with pytest.raises(ConfigError, match="no such setting") as caught:
        load_config("cgrseg-t_custom", [f"{key}=1"])
    assert str(caught.value).endswith("what to do: see docs/configuration.md for all of them")
