"""Suggestions for settings and options that do not exist.

Names of other tools are known: mmsegmentation 0.x and 1.x (mmengine), Ultralytics, Lightning, timm
and transformers.  A name is matched by its last parts, so `data.train.data_root` finds
`data_root`.  Its meaning is a setting of this package or a sentence that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cgrseg.config.schema import walk_settings
from cgrseg.errors import ConfigError

_EXACT = {
    "optimizer.lr": "optim_wrapper.optimizer.lr",
    "optimizer.betas": "optim_wrapper.optimizer.betas",
    "optimizer.weight_decay": "optim_wrapper.optimizer.weight_decay",
    "optimizer.clip_norm": "optimizer_config.grad_clip.max_norm optim_wrapper.clip_grad.max_norm",
    "optimizer.head_multiplier": "optimizer.paramwise_cfg.custom_keys.head.lr_mult "
    "optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult",
    "schedule.max_iters": "runner.max_iters train_cfg.max_iters",
    "schedule.warmup_iters": "lr_config.warmup_iters",
    "schedule.warmup_ratio": "lr_config.warmup_ratio",
    "schedule.power": "lr_config.power",
    "train.batch_size": "data.samples_per_gpu data.train_dataloader.samples_per_gpu "
    "train_dataloader.batch_size",
    "train.accumulate": "optim_wrapper.accumulative_counts optimizer_config.cumulative_iters",
    "train.eval_interval": "evaluation.interval train_cfg.val_interval",
    "train.checkpoint_interval": "checkpoint_config.interval default_hooks.checkpoint.interval",
    "train.log_interval": "log_config.interval default_hooks.logger.interval",
    "train.teacher": "teacher teacher_checkpoint teacher_model teacher_ckpt distiller.teacher",
    "train.load_from": "load_from",
    "train.seed": "seed randomness.seed",
    "train.deterministic": "deterministic randomness.deterministic",
    "data.workers": "data.workers_per_gpu data.train_dataloader.workers_per_gpu "
    "train_dataloader.num_workers",
    "data.ignore_index": "model.decode_head.ignore_index",
    "model.pretrained": "model.backbone.init_cfg.checkpoint model.backbone.pretrained",
    "model.dropout": "model.decode_head.dropout_ratio",
    "model.context_blocks": "model.decode_head.next_repeat",
    "test.mode": "model.test_cfg.mode",
    "test.crop_size": "model.test_cfg.crop_size",
    "test.stride": "model.test_cfg.stride",
    "loss.class_weights": "model.decode_head.loss_decode.class_weight",
    "loss.ohem_threshold": "model.decode_head.sampler.thresh",
    "loss.ohem_min_pixels": "model.decode_head.sampler.min_kept",
}
"""Settings to the names in mmsegmentation with the same meaning and unit: they are accepted."""

_OWN = ("optimizer.lr", "optimizer.betas", "optimizer.weight_decay", "model.pretrained", "work_dir")
"""Settings that have the same name in mmsegmentation."""

EXACT: dict[str, str] = {
    **{name: setting for setting, names in _EXACT.items() for name in names.split()},
    **{name: name for name in _OWN},
}
"""Name in mmsegmentation to the setting with the same meaning and unit."""

_SETTINGS = {
    # optimizer
    "optimizer.lr": "lr lr0 learning_rate base_lr init_lr initial_lr",
    "optimizer.betas": "adam_betas opt_betas",
    "optimizer.weight_decay": "wd decay weight_decay_rate",
    "optimizer.clip_norm": "grad_clip gradient_clip_val max_grad_norm clip_grad clip_grad_norm "
    "clip_grad.max_norm grad_clip.max_norm optimizer_config.grad_clip max_norm gradient_clipping",
    "optimizer.head_multiplier": "head.lr_mult custom_keys.head.lr_mult lr_mult head_lr_mult",
    "optimizer.layer_decay": "layer_decay_rate lr_layer_decay llrd layer_lr_decay",
    # schedule
    "schedule.max_iters": "max_steps total_iters num_iters num_iterations iterations max_iter "
    "iters steps total_steps train_steps niter",
    "schedule.warmup_iters": "warmup_steps warmup num_warmup_steps warmup_iterations",
    "schedule.warmup_ratio": "start_factor warmup_factor warmup_start_factor",
    "schedule.power": "poly_power lr_power",
    # training
    "train.batch_size": "samples_per_gpu batch bs batchsize train_batch_size batch_size_per_gpu "
    "per_device_train_batch_size per_gpu_train_batch_size imgs_per_gpu",
    "train.accumulate": "accumulate_grad_batches gradient_accumulation_steps accumulative_counts "
    "grad_accum grad_accum_steps accumulation_steps cumulative_iters",
    "train.eval_interval": "val_interval eval_steps eval_every "
    "val_check_interval eval_freq validate_every",
    "train.evaluate": "do_eval validate val run_val",
    "train.checkpoint_interval": "checkpoint.interval save_steps "
    "save_interval save_period every_n_train_steps save_every checkpoint_freq",
    "train.keep_best": "save_total_limit save_top_k max_keep_ckpts checkpoint_hist",
    "train.patience": "early_stopping early_stopping_patience early_stopping.patience",
    "train.ema_decay": "ema model_ema model_ema_decay ema.decay ema.momentum",
    "train.load_from": "weights init_from init_checkpoint pretrained_checkpoint finetune "
    "initial_checkpoint model_name_or_path ckpt checkpoint load_checkpoint",
    "train.precision": "amp fp16 bf16 half mixed_precision use_amp native_amp amp_dtype",
    "train.compile": "torch_compile torchcompile jit model_compile",
    "train.channels_last": "memory_format",
    "train.seed": "random_seed manual_seed seed_everything",
    "train.deterministic": "use_deterministic_algorithms",
    "train.log_interval": "logger.interval log_every_n_steps logging_steps "
    "log_freq print_freq log_every",
    "train.wandb": "use_wandb log_wandb wandb_logger",
    "train.mlflow": "use_mlflow log_mlflow mlflow_logger",
    # data
    "data.root": "data_root dataset_root data_dir root_dir data_path dataset_dir root dataset_path "
    "img_root",
    "data.dataset": "dataset_type data.type data.train.type dataset.type dataset_name data.name "
    "dataset",
    "data.workers": "workers_per_gpu num_workers dataloader_num_workers n_workers nworkers",
    "data.classes": "class_names names label_names metainfo.classes id2label",
    "data.palette": "metainfo.palette colormap color_map",
    "data.images": "img_dir image_dir images_dir data_prefix.img_path img_path img_prefix",
    "data.labels": "ann_dir mask_dir masks_dir label_dir labels_dir data_prefix.seg_map_path "
    "seg_map_path seg_dir masks",
    "data.extra": "extra_root extra_data pseudo_labels additional_data datasets",
    "data.unlabeled": "unlabeled unlabelled unlabeled_root unlabeled_data unlabeled_dir",
    "data.split_lists": "ann_file split_file image_list",
    "data.zero_is_ignore": "reduce_zero_label do_reduce_labels reduce_labels",
    "data.ignore_index": "ignore_index ignore_label seg_pad_val seg_ignore_label ignore_value "
    "semantic_loss_ignore_index",
    "data.val_fraction": "val_split val_ratio validation_split val_size val_percent",
    "data.train_split": "train_split train_name",
    "data.eval_split": "val_name eval_split test_split",
    "data.drop": "ignore_classes",
    # network
    "model.name": "model_type model_name arch architecture variant model.type backbone.type",
    "model.pretrained": "backbone_weights pretrained_backbone backbone.init_cfg.checkpoint "
    "init_cfg.checkpoint backbone.pretrained encoder_weights backbone_pretrained",
    "model.dropout": "dropout_ratio drop_rate dropout_rate dropout_p classifier_dropout drop_out",
    "model.drop_path": "drop_path_rate stochastic_depth stochastic_depth_prob",
    "model.freeze_norm": "norm_eval freeze_bn bn_freeze freeze_batch_norm",
    "model.freeze_backbone": "freeze_encoder encoder_freeze frozen_backbone frozen_stages "
    "backbone.frozen_stages freeze",
    "model.sync_norm": "sync_bn sync_batchnorm syncbn",
    # augmentation
    "augment.crop_size": "crop imgsz img_size image_size input_size crop_sz",
    "augment.scale": "img_scale base_size",
    "augment.ratio_range": "scale_range resize_range",
    "augment.flip": "fliplr hflip flip_prob flip_ratio horizontal_flip hflip_prob",
    "augment.vertical_flip": "flipud vflip vflip_prob",
    "augment.rotation": "degrees rotate max_rotation random_rotation",
    "augment.max_class_share": "cat_max_ratio",
    "augment.photometric.brightness": "brightness_delta hsv_v",
    "augment.photometric.contrast": "contrast_range",
    "augment.photometric.saturation": "saturation_range hsv_s",
    "augment.photometric.hue": "hue_delta hsv_h",
    "augment.photometric.probability": "color_jitter color_jitter_prob",
    "augment.blur": "gaussian_blur gauss_blur blur_prob",
    "augment.blur_sigma": "sigma_limit",
    "augment.noise": "gauss_noise gaussian_noise noise_prob",
    "augment.jpeg": "image_compression jpeg_compression jpeg_prob",
    "augment.jpeg_quality": "quality_range",
    # test
    "test.ratios": "img_ratios tta_ratios",
    "test.mode": "test_cfg.mode",
    "test.stride": "test_cfg.stride",
    "test.crop_size": "test_cfg.crop_size window_size",
    "test.divisor": "size_divisor",
    # loss
    "loss.class_weights": "class_weight loss_decode.class_weight label_weights",
    "loss.label_smoothing": "label_smooth smoothing label_smoothing_factor",
    "loss.ohem_threshold": "sampler.thresh ohem_thresh ohem",
    "loss.ohem_min_pixels": "sampler.min_kept min_kept",
    "loss.dice_weight": "dice dice_loss_weight",
    "loss.average": "avg_non_ignore reduction",
    # run
    "work_dir": "output_dir default_root_dir save_dir out_dir project log_dir logdir workdir "
    "run_dir",
    "name": "run_name experiment_name exp_name experiment",
}

_ITERATIONS = (
    "training is counted in iterations, not in epochs: set schedule.max_iters to epochs x images / "
    "train.batch_size"
)
_RESUME = "resuming is not a setting: cgrseg train RUN_FOLDER --resume, or --resume-from CHECKPOINT"
_METRICS = (
    "metrics are not a setting: every evaluation computes the usual ones, and cgrseg evaluate "
    "--metric adds mBoundaryIoU or ECE"
)
_DEVICE = "the device is not a setting: cgrseg train CONFIG --device cuda:0"
_GPUS = (
    "the number of GPUs is not a setting: sh tools/dist_train.sh CONFIG GPUS starts a process each"
)
_CLASSES = (
    "the number of classes follows from the class list: set data.classes, or write classes.txt"
)
_OPTIMIZER = "set optimizer.name to adamw or muon; all settings of it are in the section optimizer"
_SCHEDULE = "the learning rate always decays polynomially; its settings are in the section schedule"
_NORMALIZE = "images are always normalized with the ImageNet mean and standard deviation"
_BACKBONE = "the variant decides the backbone: set model.name, or model.pretrained for its weights"
_EVAL_BATCH = "evaluation during training takes images one by one: leave it out"

_SENTENCES = {
    _ITERATIONS: "epochs max_epochs num_train_epochs num_epochs n_epochs train_cfg.max_epochs "
    "epoch runner.max_epochs warmup_epochs",
    _RESUME: "resume resume_from resume_from_checkpoint auto_resume ckpt_path resume_training",
    _METRICS: "evaluation.metric metric metrics val_evaluator.iou_metrics iou_metrics eval_metric "
    "metric_for_best_model save_best",
    _DEVICE: "device devices gpu gpu_id accelerator gpu_ids cuda local_rank",
    _GPUS: "gpus num_gpus n_gpus world_size launcher num_nodes",
    _CLASSES: "num_classes nc n_classes num_labels decode_head.num_classes",
    _OPTIMIZER: "optimizer.type optim opt optimizer_type optim_wrapper.type "
    "optim_wrapper.optimizer.type optimizer.momentum",
    _SCHEDULE: "lr_config.policy lr_scheduler lr_scheduler_type sched scheduler lr_policy cos_lr "
    "param_scheduler.type scheduler.name lrf min_lr lr_config.min_lr eta_min",
    _NORMALIZE: "mean std image_mean image_std img_norm_cfg img_norm_cfg.mean img_norm_cfg.std "
    "data_preprocessor.mean data_preprocessor.std",
    _BACKBONE: "backbone model.backbone encoder encoder_name model.encoder",
    _EVAL_BATCH: "per_device_eval_batch_size eval_batch_size val_batch_size "
    "val_dataloader.batch_size test_dataloader.batch_size validation_batch_size",
}

MEANINGS: dict[str, str] = {
    name: meaning
    for table in (_EXACT, _SETTINGS, _SENTENCES)
    for meaning, names in table.items()
    for name in names.split()
}
"""Name in another tool to a setting of this package, or to a sentence."""


def meaning_of(path: str) -> str | None:
    """Meaning of an unknown dotted name: a setting of ours, a sentence, or None.

    Args:
        path: as typed, e.g. `data.samples_per_gpu` or `--learning-rate`.
    """
    parts = [part for part in normalized(path).split(".") if not part.isdecimal()]
    for start in range(len(parts)):
        meaning = MEANINGS.get(".".join(parts[start:]))
        if meaning is not None:
            return meaning
    return None


def normalized(path: str) -> str:
    """A name without dashes, in lower case: `--perDevice-batch` gives `per_device_batch`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", path.strip().lstrip("-"))
    return words.lower().replace("-", "_")


# Ambiguous without their section: `optimizer.name` is not `model.name`.
_VAGUE = frozenset(
    {"name", "root", "images", "labels", "check", "merge", "rename", "drop", "scale", "flip"}
    | {"resize", "mode", "ratios", "average", "power", "compile", "evaluate", "probability"}
    | {"classes", "crop_size", "stride", "precision"}
)


def remedy_for_setting(path: str) -> str:
    """Remedy for an unknown setting, as the last part of a message."""
    meant = meant_setting(path)
    if meant is None:
        return "see docs/configuration.md for all of them"
    return meant if " " in meant else f"did you mean {meant}?"


def meant_setting(path: str) -> str | None:
    """The setting that an unknown dotted name means, a sentence about it, or None.

    In this order: a setting of this name in another section, the name in another tool, a
    misspelling of a setting.
    """
    known = [name for name, _ in walk_settings()]
    sections = sorted({name.rpartition(".")[0] for name in known if "." in name})
    path = normalized(path)
    leaf = path.rpartition(".")[2]
    inside = [name for name in known if name.endswith(f".{path}")]
    if len(inside) == 1:
        return inside[0]
    meaning = meaning_of(path)
    if meaning is not None and meaning != path:
        return meaning
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    if len(same_leaf) == 1 and leaf not in _VAGUE:
        return same_leaf[0]
    return misspelt(path, [*known, *sections])


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The known name of which `name` is a misspelling in every part, or None.

    A name without a section may stand for the last part of a known one.
    """
    parts = name.split(".")
    best: tuple[int, str] | None = None
    for candidate in known:
        theirs = candidate.split(".")
        compared = theirs[-len(parts) :] if len(parts) == 1 else theirs
        if len(compared) != len(parts):
            continue
        distances = [edits(mine, other) for mine, other in zip(parts, compared, strict=True)]
        if all(d <= _allowed(other) for d, other in zip(distances, compared, strict=True)):
            best = min(best or (sum(distances), candidate), (sum(distances), candidate))
    return best[1] if best is not None else None


def unknown_option(
    name: str, known: Iterable[str], help_command: str, spell: Callable[[str], str] | None
) -> ConfigError:
    """Error for an option that a command does not have.

    Args:
        name: as typed, e.g. `--epochs`.
        known: options of the command.
        help_command: command that lists the options.
        spell: form in which the command takes a setting, given its dotted name; None: the command
            takes no settings.
    """
    known = sorted(known)
    near = misspelt(name.lstrip("-"), [each.lstrip("-") for each in known])
    meant = meant_setting(name) if spell is not None else None
    remedy = f"see {help_command}"
    if near is not None:
        remedy = f"did you mean --{near}?"
    elif meant is not None and spell is not None:
        remedy = meant if " " in meant else f"write {spell(meant)}"
    return ConfigError(
        name, found="there is no such option", expected=", ".join(known), remedy=remedy
    )


def edits(first: str, second: str) -> int:
    """Number of letters to insert, delete, replace or swap with the next one."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        older, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _allowed(word: str) -> int:
    return 1 if len(word) <= 5 else 2
