"""Configs of mmsegmentation: recognized, translated with exactly their differences, never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cgrseg.config import load_config
from cgrseg.config.mmseg import translate
from cgrseg.errors import ConfigError

# A run of CGRSeg-T in the form of 0.x, without its _base_ files.
OLD = """
_base_ = ['../_base_/datasets/ade20k.py', '../_base_/default_runtime.py',
          '../_base_/schedules/schedule_160k.py']
norm_cfg = dict(type='SyncBN', requires_grad=True)
crop_size = (512, 512)
mean_std = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
root = 'data/ade/ADEChallengeData2016'
train_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', img_scale=(2048, 512), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='Normalize', **mean_std),
    dict(type='Pad', size=crop_size, pad_val=0, seg_pad_val=255),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_semantic_seg']),
]
test_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
        dict(type='Normalize', **mean_std), dict(type='Pad', size_divisor=32),
        dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]),
]
data = dict(
    samples_per_gpu=4,
    train=dict(type='ADE20KDataset', data_root=root, img_dir='images/training',
               ann_dir='annotations/training', pipeline=train_steps),
    val=dict(type='ADE20KDataset', data_root=root, img_dir='images/validation',
             ann_dir='annotations/validation', pipeline=test_steps),
    test=dict(type='ADE20KDataset', data_root=root, img_dir='images/validation',
              ann_dir='annotations/validation', pipeline=test_steps))
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='efficientformerv2_s1_feat', style='pytorch'),
    decode_head=dict(type='CGRSeg', in_channels=[48, 120, 224], in_index=[1, 2, 3], channels=128,
                     dropout_ratio=0.1, num_classes=150, is_dw=True, dw_size=11, neck_size=11,
                     next_repeat=5, square_kernel_size=3, ratio=1, module='RCA', norm_cfg=norm_cfg,
                     align_corners=False,
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
optimizer = dict(_delete_=True, type='AdamW', lr=0.00012, betas=(0.9, 0.999), weight_decay=0.01,
                 paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.),
                                                 'norm': dict(decay_mult=0.)}))
lr_config = dict(_delete_=True, policy='poly', warmup='linear', warmup_iters=1500,
                 warmup_ratio=1e-6, power=1.0, min_lr=0.0, by_epoch=False)
evaluation = dict(interval=4000)
find_unused_parameters = True
"""

# The same run in the form of 1.x.
NEW = """
crop_size = (512, 512)
root = 'data/ade/ADEChallengeData2016'
train_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4, persistent_workers=True, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='ADE20KDataset', data_root=root, pipeline=train_steps, data_prefix=dict(
        img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1, num_workers=4, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ADE20KDataset', data_root=root, pipeline=test_steps, data_prefix=dict(
        img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_val=0,
                           seg_pad_val=255, size=crop_size, test_cfg=dict(size_divisor=32)),
    backbone=dict(type='efficientformerv2_l_feat'),
    decode_head=dict(type='CGRSeg', in_channels=[80, 192, 384], in_index=[1, 2, 3], channels=256,
                     dropout_ratio=0.1, num_classes=150, is_dw=True, dw_size=9, neck_size=9,
                     next_repeat=5, norm_cfg=dict(type='SyncBN', requires_grad=True),
                     loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0)),
    test_cfg=dict(mode='whole'))
optim_wrapper = dict(
    type='OptimWrapper', clip_grad=None,
    optimizer=dict(type='AdamW', lr=0.00012, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.), 'norm': dict(decay_mult=0.)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=160000, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(logger=dict(type='LoggerHook', interval=50),
                     checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4000))
randomness = dict(seed=0)
tta_pipeline = [dict(type='TestTimeAug', transforms=[
    [dict(type='Resize', scale_factor=r, keep_ratio=True)
     for r in [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]],
    [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)]])]
"""


# Presets with ImageNet weights: a file without weights trains from scratch.
SCRATCH: dict[str, Any] = {"model.pretrained": None}


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "preset", "version"),
    [(OLD, "cgrseg-t_ade20k_160k", "0.x"), (NEW, "cgrseg-l_ade20k_160k", "1.x")],
)
def test_a_plain_config_is_its_preset(tmp_path: Path, text: str, preset: str, version: str) -> None:
    found = translate(write(tmp_path, text))
    assert (found.preset, found.version, found.network) == (preset, version, None)
    assert found.changes == SCRATCH
    assert found.without_counterpart == []
    assert len(found.assumed) == (3 if text is OLD else 0)


# Text of the file, what replaces it, the form, and the settings that differ.
PLANTED: list[tuple[str, str, str, dict[str, Any]]] = [
    (OLD, "lr=0.00012", "lr=0.0002", {"optimizer.lr": 0.0002}),
    (OLD, "betas=(0.9, 0.999)", "betas=(0.8, 0.99)", {"optimizer.betas": [0.8, 0.99]}),
    (OLD, "'head': dict(lr_mult=10.),", "", {"optimizer.head_multiplier": 1.0}),
    (OLD, "samples_per_gpu=4", "samples_per_gpu=2, workers_per_gpu=3",
     {"train.batch_size": 2, "data.workers": 3}),
    (OLD, "crop_size = (512, 512)", "crop_size = (256, 512)", {"augment.crop_size": [256, 512]}),
    (OLD, "ratio_range=(0.5, 2.0)", "ratio_range=(0.75, 1.5)",
     {"augment.ratio_range": [0.75, 1.5]}),
    (OLD, "prob=0.5", "prob=0.0", {"augment.flip": 0.0}),
    (OLD, "    dict(type='PhotoMetricDistortion'),\n", "",
     {"augment.photometric.probability": 0.0}),
    (OLD, "evaluation = dict(interval=4000)",
     "evaluation = dict(interval=2000)\ncheckpoint_config = dict(interval=1000)",
     {"train.eval_interval": 2000, "train.checkpoint_interval": 1000}),
    (OLD, "schedule_160k.py", "schedule_80k.py", {"schedule.max_iters": 80000}),
    (OLD, "warmup='linear', warmup_iters=1500,", "", {"schedule.warmup_iters": 0}),
    (OLD, "next_repeat=5", "next_repeat=6", {"model.context_blocks": 6}),
    (OLD, "type='CGRSeg'", "type='CGRSeg_ssa'", {"model.head": "ssa"}),
    (OLD, "flip=False", "flip=True, img_ratios=[0.5, 1.0]",
     {"test.flip": True, "test.ratios": [0.5, 1.0]}),
    (OLD, "root = 'data/ade/ADEChallengeData2016'", "root = '/data/' + 'ade'",
     {"data.root": "/data/ade"}),
    (NEW, "mode='whole'", "mode='slide', crop_size=(512, 512), stride=(256, 256)",
     {"test.mode": "slide", "test.stride": [256, 256]}),
    (NEW, "clip_grad=None", "clip_grad=dict(max_norm=1.0, norm_type=2)",
     {"optimizer.clip_norm": 1.0}),
    (NEW, "end=1500", "end=750", {"schedule.warmup_iters": 750}),
    (NEW, "power=1.0", "power=0.9", {"schedule.power": 0.9}),
    (NEW, "max_iters=160000, val_interval=4000", "max_iters=160000, val_interval=1000",
     {"train.eval_interval": 1000, "train.checkpoint_interval": 4000}),
    (NEW, "type='OptimWrapper'", "type='AmpOptimWrapper'", {"train.precision": "fp16"}),
    (NEW, "backbone=dict(type='efficientformerv2_l_feat')",
     "backbone=dict(type='efficientformerv2_l_feat', "
     "init_cfg=dict(type='Pretrained', checkpoint='l.pth'))", {"model.pretrained": "l.pth"}),
    (NEW, "loss_weight=1.0", "loss_weight=1.0, avg_non_ignore=True", {"loss.average": "valid"}),
    (NEW, "randomness = dict(seed=0)", "randomness = dict(seed=7)\nload_from = 'a.pth'",
     {"train.seed": 7, "train.load_from": "a.pth"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "before", "after", "differences"), PLANTED)
def test_planted_differences_are_found_and_no_others(
    tmp_path: Path, text: str, before: str, after: str, differences: dict[str, Any]
) -> None:
    assert before in text
    found = translate(write(tmp_path, text.replace(before, after)))
    differences = {**SCRATCH, **differences}
    assert found.changes == differences
    assert found.without_counterpart == []
    lines = "\n".join(found.notes())
    assert all(f"  {key} = " in lines for key in differences)
    written = load_config(write(tmp_path, found.python(), "ours.py"))
    assert written == load_config(found.preset, {"name": "mine", **differences})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("type='AdamW', lr=0.00012", "type='SGD', lr=0.01", "lr = 0.01: a setting of SGD"),
        ("min_lr=0.0", "min_lr=1e-5", "lr_config.min_lr = 1e-05: always 0.0"),
        ("num_classes=150", "num_classes=19", "num_classes = 19: ade20k has 150"),
        ("dw_size=11", "dw_size=7", "model.decode_head.dw_size = 7: always 11"),
        ("dict(type='RandomFlip', prob=0.5),", "dict(type='RandomFlip', prob=0.5), "
         "dict(type='RandomRotate', prob=0.5, degree=10),", "RandomRotate.degree = 10"),
        ("evaluation =", "custom_hooks = [dict(type='EMAHook', momentum=0.01)]\nevaluation =",
         "custom_hooks.EMAHook.momentum = 0.01"),
        ("crop_size = (512, 512)", "crop_size = (500, 500)", "two multiples of 32"),
        ("interval=4000", "interval=round(1e3)", ": round(1000.0)"),
        ("find_unused", "resume_from = 'a.pth'\nfind_unused", "cgrseg train translated.py"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_listed(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    found = translate(write(tmp_path, OLD.replace(before, after)))
    assert any(told in note for note in found.without_counterpart), found.without_counterpart
    assert not any("what to do" in note for note in found.without_counterpart)


def test_another_network_is_named(tmp_path: Path) -> None:
    other = OLD.replace("efficientformerv2_s1_feat", "MixVisionTransformer").replace(
        "'CGRSeg'", "'SegformerHead'"
    )
    found = translate(write(tmp_path, other.replace("samples_per_gpu=4", "samples_per_gpu=2")))
    assert found.network == "MixVisionTransformer with SegformerHead"
    assert found.changes == {"train.batch_size": 2}


def test_a_dataset_of_ones_own_keeps_its_folders_and_classes(tmp_path: Path) -> None:
    own = NEW.replace("'ADE20KDataset'", "'RoadsDataset'").replace(
        "data_prefix=", "metainfo=dict(classes=['sky', 'road']), data_prefix="
    )
    found = translate(write(tmp_path, own.replace("num_classes=150", "num_classes=2")))
    assert found.preset == "cgrseg-l_custom"
    data = found.config.data
    assert (data.images, data.labels) == ("images/{split}", "annotations/{split}")
    assert (data.train_split, data.eval_split) == ("training", "validation")
    assert data.classes == ["sky", "road"] and data.zero_is_ignore
    assert found.without_counterpart == []


def test_base_files_are_merged_as_mmcv_does(tmp_path: Path) -> None:
    write(tmp_path, "optimizer = dict(type='SGD', lr=0.01)\nsteps = 10\n", "base/schedule.py")
    write(tmp_path, OLD, "base/run.py")
    child = write(
        tmp_path,
        "_base_ = ['base/schedule.py', './base/run.py']\n"
        "runner = dict(max_iters={{_base_.steps}} * 100)\n"
        "evaluation = dict(interval='{{_base_.data.samples_per_gpu}}')\n"
        "work_dir = '{{ fileBasenameNoExtension }}_runs'\n"
        "model = dict(decode_head=dict(next_repeat=3))\nmodel['test_cfg'] = dict(mode='slide')\n",
    )
    assert translate(child).changes == {
        **SCRATCH,
        "schedule.max_iters": 1000,
        "train.eval_interval": 4,
        "work_dir": "mine_runs",
        "model.context_blocks": 3,
        "test.mode": "slide",
    }


def test_a_child_of_a_published_run_that_is_not_there(tmp_path: Path) -> None:
    child = "_base_ = './cgrseg-b_ade20k_160k.py'\ndata = dict(samples_per_gpu=8)\n"
    found = translate(write(tmp_path, child))
    assert (found.preset, found.changes) == ("cgrseg-b_ade20k_160k", {"train.batch_size": 8})
    assert "the preset cgrseg-b_ade20k_160k stands for it" in found.assumed[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("_base_ = 'mine.py'\n", "among its own _base_ files"),
        ("_base_ = '../_base_/nothing.py'\n", "nothing.py is not there"),
        ("_base_ = 'broken.py'\n", "broken.py: it cannot be read"),
        ("with read_base():\n    from ..base import *\n", "lazily typed config of mmengine"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path, "model = dict(\n", "broken.py")
    with pytest.raises(ConfigError, match="what to do") as caught:
        load_config(write(tmp_path, text))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "import os; os.system('touch PATH')",
        "__import__('os').system('touch PATH')",
        "work_dir = __import__('os').system('touch PATH')",
        "data = dict(samples_per_gpu=open('PATH', 'w'))",
        "work_dir = [open(p, 'w') for p in ['PATH']]",
        "class Run:\n    x = open('PATH', 'w')",
        "seed = 9 ** 9 ** 9",
        "work_dir = 'x' * 10 ** 9 * 10 ** 9",
        "work_dir = f\"{open('PATH', 'w')}\"",
        "a = [1, 1]\n" + "a = [a, a]\n" * 60 + "data['train'] = a",
    ],
)
def test_a_hostile_file_runs_nothing(tmp_path: Path, line: str) -> None:
    mark = tmp_path / "mark"
    found = translate(write(tmp_path, OLD + line.replace("PATH", str(mark)) + "\n"))
    assert not mark.exists()
    assert any("mine.py, line" in note for note in found.without_counterpart)
    with pytest.raises(ConfigError, match=r"config of mmsegmentation 0\.x"):
        load_config(tmp_path / "mine.py")
    assert not mark.exists()


EPOCHS_OLD = OLD.replace(
    "evaluation = dict(interval=4000)",
    "runner = dict(type='EpochBasedRunner', max_epochs=50)\n"
    "evaluation = dict(interval=1)\ncheckpoint_config = dict(interval=5)",
).replace("warmup_iters=1500", "warmup_iters=2, warmup_by_epoch=True")
EPOCHS_NEW = (
    NEW.replace("type='IterBasedTrainLoop', max_iters=160000, val_interval=4000",
                "by_epoch=True, max_epochs=50, val_interval=1")
    .replace("by_epoch=False, begin=0, end=1500", "begin=0, end=5")
    .replace("by_epoch=False, interval=4000", "interval=1")
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (EPOCHS_OLD, ["runner.max_epochs = 50", "evaluation.interval = 1",
                      "checkpoint_config.interval = 5", "lr_config.warmup_iters = 2"]),
        (EPOCHS_NEW, ["train_cfg.max_epochs = 50", "train_cfg.val_interval = 1",
                      "default_hooks.checkpoint.interval = 1",
                      "param_scheduler.LinearLR.end = 5"]),
    ],
)  # fmt: skip
def test_epochs_are_listed_and_never_iterations(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    found = translate(write(tmp_path, text))
    assert found.changes == SCRATCH
    for name in names:
        assert f"{name}: counted in epochs; iterations here" in found.without_counterpart


def test_a_file_name_is_never_code(tmp_path: Path) -> None:
    path = write(tmp_path, OLD, 'a"""\nraise SystemExit(7)\n"""\\.py')
    text = translate(path).python()
    assert load_config(write(tmp_path, text, "ours.py")).optimizer.lr == 0.00012


@pytest.mark.parametrize(
    ("lines", "told"),
    [("a = (1, 2)\na[0] = 3", "a[0] = 3"), ("a = {}\na['b']['c'] = 1", "a['b']['c'] = 1")],
)
def test_an_assignment_that_fails_is_listed(tmp_path: Path, lines: str, told: str) -> None:
    found = translate(write(tmp_path, f"{OLD}{lines}\n"))
    assert len(found.without_counterpart) == 1
    assert found.without_counterpart[0].endswith(told)


def test_the_loader_of_training_is_read_over_that_of_all_splits(tmp_path: Path) -> None:
    loader = "train_dataloader=dict(samples_per_gpu=2, workers_per_gpu=3)"
    for order in (f"{loader}, samples_per_gpu=8, workers_per_gpu=9",
                  f"samples_per_gpu=8, workers_per_gpu=9, {loader}"):  # fmt: skip
        found = translate(write(tmp_path, OLD.replace("samples_per_gpu=4", order)))
        assert found.changes == {**SCRATCH, "train.batch_size": 2, "data.workers": 3}


FLIP = "dict(type='RandomFlip', prob=0.5)"


@pytest.mark.parametrize(
    ("text", "before", "after", "differences", "told"),
    [
        (OLD, FLIP, f"{FLIP}, dict(type='RandomFlip', prob=0.25, direction='vertical')",
         {"augment.vertical_flip": 0.25}, None),
        (OLD, FLIP, f"{FLIP}, dict(type='RandomFlip', prob=0.25)", {},
         'RandomFlip[2].prob = [0.25, "horizontal"]'),
        (NEW, "ratio_range=(0.5, 2.0), keep_ratio=True", "ratio_range=(0.5, 2.0)", {},
         "False is the default of mmcv 2"),
        (NEW, "    dict(type='Resize', scale=(2048, 512), keep_ratio=True),\n", "",
         {"test.resize": "none"}, None),
        (OLD, "dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),", "", {},
         "without RandomCrop"),
        (OLD, "dict(type='Resize', img_scale=(2048, 512), ratio_range=(0.5, 2.0)),", "", {},
         "without Resize"),
        (OLD, "warmup_ratio=1e-6, ", "", {"schedule.warmup_ratio": 0.1}, None),
        (OLD, "'norm': dict(decay_mult=0.)", "", {}, "without norm.decay_mult"),
        (NEW, NEW[NEW.index("param_scheduler") : NEW.index("train_cfg = ")], "",
         {"schedule.power": 0.0, "schedule.warmup_iters": 0}, None),
        (OLD, "betas=(0.9, 0.999)", "betas=(0.999, 0.9)", {"optimizer.betas": [0.999, 0.9]}, None),
        (OLD, "img_scale=(2048, 512), ratio", "img_scale=(512, 2048), ratio", {}, None),
    ],
)  # fmt: skip
def test_steps_and_defaults_of_mmsegmentation(
    tmp_path: Path, text: str, before: str, after: str, differences: dict[str, Any],
    told: str | None,
) -> None:  # fmt: skip
    assert before in text
    found = translate(write(tmp_path, text.replace(before, after)))
    assert found.changes == {**SCRATCH, **differences}
    assert len(found.without_counterpart) == (told is not None), found.without_counterpart
    assert told is None or told in found.without_counterpart[0]


def test_the_loss_of_another_network_is_kept(tmp_path: Path) -> None:
    text = OLD.replace("efficientformerv2_s1_feat", "ResNet").replace("loss_weight=1.0)", (
        "loss_weight=0.5, avg_non_ignore=True), ignore_index=254, "
        "sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=9)"))  # fmt: skip
    found = translate(write(tmp_path, text))
    assert found.changes == {
        "loss.average": "valid",
        "data.ignore_index": 254,
        "loss.ohem_threshold": 0.7,
        "loss.ohem_min_pixels": 9,
    }
    assert found.without_counterpart == [
        "model.decode_head.loss_decode.loss_weight = 0.5: always 1.0"
    ]


def test_names_in_the_report_are_those_of_the_file(tmp_path: Path) -> None:
    own = OLD.replace(
        "train=dict(type='ADE20KDataset'",
        "train=dict(type='Roads', classes=['a', 'b'], img_suffix='_x.png'",
    ).replace("num_classes=150", "num_classes=2")
    origins = translate(write(tmp_path, own)).origins
    assert origins["data.classes"] == "data.train.classes"
    assert origins["data.image_name"] == "data.train.img_suffix"


def test_the_length_of_texts_is_bounded(tmp_path: Path) -> None:
    lines = "a = 'x' * 100000\nwork_dir = [a] * 1000\n"
    found = translate(write(tmp_path, OLD + lines))
    assert any("[a] * 1000" in note for note in found.without_counterpart)
    assert "work_dir" not in found.changes


@pytest.mark.parametrize(
    "line", ["param_scheduler = 'a'", "train_cfg = 3", "model = []", "data = dict(train=[1])"]
)
def test_values_of_another_type_are_no_bug(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"{NEW}\n{line}\n")
    try:
        found = translate(path)
    except ConfigError as error:
        assert "a value of an unexpected form" in str(error)
    else:
        assert found.preset.startswith("cgrseg-")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_dumps_of_a_run_are_read(tmp_path: Path, suffix: str) -> None:
    dumped: dict[str, Any] = {
        "model": {"backbone": {"type": "mmseg.models.efficientformerv2_s2_feat"}},
        "train_dataloader": {"batch_size": 2, "dataset": {"type": "ADE20KDataset"}},
        "train_cfg": {"max_iters": 20000},
    }
    text = json.dumps(dumped)
    if suffix == "yaml":
        text = text[:-1] + ', "crop": !!python/tuple [512, 512]}'
    path = write(tmp_path, text, f"dump.{suffix}")
    found = translate(path)
    assert (found.preset, found.version) == ("cgrseg-b_ade20k_160k", "1.x")
    assert found.changes == {**SCRATCH, "train.batch_size": 2, "schedule.max_iters": 20000}
    with pytest.raises(ConfigError, match="config translate"):
        load_config(path)


def test_a_short_file_cannot_stand_for_billions_of_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 60))]
    with pytest.raises(ConfigError, match="more than 200000 values"):
        translate(write(tmp_path, "\n".join([*lines, "evaluation: {interval: 1}"]), "a.yaml"))


def test_a_file_of_ours_is_ours(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "from cgrseg.config import preset\nmodel = dict(backbone=1)\n_base_ = 1\n"
        "config = preset('cgrseg_t', 'ade20k')\n",
    )
    assert load_config(path).name == "mine"
    for other in (path, write(tmp_path, "", "empty.py"), tmp_path / "missing.py"):
        with pytest.raises(ConfigError, match=f"{other.name}: (none of|it cannot be read)"):
            translate(other)


@pytest.mark.parametrize(
    ("typed", "setting", "value"),
    [
        ("data.samples_per_gpu=3", "train.batch_size", 3),
        ("train_dataloader.batch_size=3", "train.batch_size", 3),
        ("data.workers_per_gpu=3", "data.workers", 3),
        ("runner.max_iters=30", "schedule.max_iters", 30),
        ("train_cfg.max_iters=30", "schedule.max_iters", 30),
        ("evaluation.interval=30", "train.eval_interval", 30),
        ("checkpoint_config.interval=30", "train.checkpoint_interval", 30),
        ("default_hooks.checkpoint.interval=30", "train.checkpoint_interval", 30),
        ("optim_wrapper.optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("model.test_cfg.mode=slide", "test.mode", "slide"),
        ("model.test_cfg.stride=(200,200)", "test.stride", [200, 200]),
        ("model.backbone.init_cfg.checkpoint=a.pth", "model.pretrained", "a.pth"),
        ("lr_config.warmup_iters=3", "schedule.warmup_iters", 3),
    ],
)
def test_exact_names_of_mmsegmentation_are_accepted(
    typed: str, setting: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="cgrseg.config"):
        config = load_config("cgrseg-t_custom", [typed])
    assert config == load_config("cgrseg-t_custom", {setting: value})
    assert caplog.messages == [f"{typed.partition('=')[0]} is {setting} here"]


def test_number_of_classes_must_be_that_of_the_class_list() -> None:
    typed = "model.decode_head.num_classes=150"
    assert load_config("cgrseg-t_ade20k_160k", [typed]) == load_config("cgrseg-t_ade20k_160k")
    with pytest.raises(ConfigError, match="follows from the class list"):
        load_config("cgrseg-t_camvid", [typed])
