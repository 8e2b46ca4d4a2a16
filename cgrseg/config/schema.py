"""Schema of a run's settings: description, unit, default and limits of each.

Unknown keys are refused.  The defaults are the published recipe (ADE20K,
CGRSeg-T); :mod:`cgrseg.config.presets` holds what differs per variant and
dataset.  The number of classes follows from the class list of the dataset (:mod:`cgrseg.datasets`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from cgrseg.augmentations import MIXES, OPERATIONS
from cgrseg.config.fields import (
    MAX_SIDE,
    BatchSize,
    BelowOne,
    Count,
    CountOrNone,
    Factor,
    Level,
    Probability,
    Ratio,
    Section,
    Seed,
    Size,
    Sources,
    Weight,
    field_annotations,
    subsection,
)
from cgrseg.cpus import usable_cpus
from cgrseg.errors import ConfigError, refuse_secrets
from cgrseg.loss_terms import TERMS
from cgrseg.variants import IMAGENET, NETWORK_STRIDE, HeadName, VariantName

_LOADERS = 4  # data loader processes per training process, unless `data.workers` is set


class ModelConfig(Section):
    """The network."""

    name: VariantName = Field("cgrseg_t", description="Variant of the network.")
    head: HeadName = Field(
        "dpg",
        description="Head of the network. 'dpg': dynamic prototype guided (published with CGRSeg). "
        "'ssa': semantic and spatial adaptive classifier (SSA-Seg, arXiv 2405.06525), trained with "
        "the losses of `loss.ssa`; its checkpoints are not exchangeable with those of 'dpg'.",
    )
    context_blocks: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None,
        description="Number of pyramid context blocks; none: that of the variant (5; cgrseg_b with "
        "the ssa head: 6).",
    )
    pretrained: str | None = Field(
        IMAGENET,
        description="Initial weights of the backbone: 'imagenet' (timm's ImageNet weights of the "
        "variant, downloaded once from the Hugging Face hub; not needed with `train.load_from`), "
        "a local .pth or .safetensors file, or a hub id of timm's EfficientFormerV2. None: from "
        "scratch.",
    )
    dropout: BelowOne = Field(
        0.1, description="Probability of channel dropout before the classifier."
    )
    drop_path: BelowOne | None = Field(
        None,
        description="Stochastic depth rate of the last backbone block, rising linearly from 0 at "
        "the first; none: that of the variant.",
    )
    freeze_norm: bool = Field(
        False, description="Keep the backbone's batch norms at their stored statistics."
    )
    freeze_backbone: bool = Field(
        False,
        description="Train the head alone: the backbone keeps its weights and statistics. Needs "
        "`pretrained` or `train.load_from`.",
    )
    attention_bias: Literal["published", "geometric"] = Field(
        "published",
        description="How the attention bias follows the input size. 'published': what published "
        "checkpoints need. 'geometric': by true row and column offsets, from ImageNet's own "
        "table; its checkpoints are not exchangeable with published ones.",
    )
    sync_norm: bool = Field(
        True,
        description="Synchronize batch norms over processes when there is more than one on GPUs.",
    )


class ChannelsConfig(Section):
    """Images of other channels than 8-bit RGB: values of 8 or 16 bits or float32, as stored."""

    names: list[str] | None = Field(
        None,
        min_length=1,
        max_length=128,  # what OpenCV resizes
        description="Names of the channels of an image, in the order of its bands, pages or files, "
        "such as [red,green,blue,nir]; None: images are read as 8-bit RGB (published).",
    )
    rgb: Annotated[list[str], Field(min_length=3, max_length=3)] | None = Field(
        None,
        description="Names of the channels with red, green and blue, in this order: overlays and "
        "reports show them, and saturation and hue vary in them alone. None: the channels called "
        "red, green and blue; where they are missing, the first channel is shown in gray.",
    )
    files: list[str] | None = Field(
        None,
        description="Further files of an image, whose channels follow its own: paths from its "
        "folder, {stem} being its name without ending, such as {stem}_nir.png or "
        "../nir/{stem}.tif.",
    )
    mean: list[Annotated[float, Field(ge=-1e38, le=1e38)]] | None = Field(
        None,
        description="Mean of the stored values of each channel; none: measured on the training "
        "images when a training starts, and kept with the checkpoint, like `std` and `types`.",
    )
    std: list[Annotated[float, Field(gt=0, le=1e38)]] | None = Field(
        None, description="Standard deviation of the stored values of each channel."
    )
    types: list[Literal["uint8", "uint16", "float32"]] | None = Field(
        None,
        description="Type of the stored values of each channel; images of other types are refused. "
        "Signed and longer types count as float32.",
    )

    @model_validator(mode="after")
    def _lists_agree(self) -> ChannelsConfig:
        given = {
            name: values
            for name in ("rgb", "files", "mean", "std", "types")
            if (values := getattr(self, name)) is not None
        }
        names = self.names
        if names is None:
            if not given:
                return self
            raise ConfigError(
                f"data.channels.{next(iter(given))}",
                found="given without data.channels.names",
                expected="the names of all channels of an image",
                remedy="for example data.channels.names=[red,green,blue,nir]",
            )
        unlike = len(set(names)) < len(names)
        if unlike or any("," in name or not name.strip() for name in names):
            raise ConfigError(
                "data.channels.names",
                found=f"{names}",
                expected="a name of its own for each channel, without commas",
                remedy="rename those that are empty or repeated",
            )
        for name in ("mean", "std", "types"):
            if len(given.get(name, names)) != len(names):
                raise ConfigError(
                    f"data.channels.{name}",
                    found=f"{len(given[name])} entries",
                    expected=f"{len(names)}, one for each of {', '.join(names)}",
                    remedy="correct it, or leave it out: it is then measured",
                )
        unknown = [name for name in self.rgb or [] if name not in names]
        if unknown:
            raise ConfigError(
                "data.channels.rgb",
                found=f"{unknown[0]!r}, which is no channel",
                expected=f"three of {', '.join(names)}",
                remedy="correct the name",
            )
        unfit = [text for text in self.files or [] if text.count("{stem}") != 1]
        if unfit:
            raise ConfigError(
                "data.channels.files",
                found=repr(unfit[0]),
                expected="a path that holds {stem} once, such as {stem}_nir.png",
                remedy="correct it",
            )
        return self

    @property
    def rgb_indices(self) -> tuple[int, int, int] | None:
        """Indices of red, green and blue; None: there are none."""
        names = self.names or []
        wanted = self.rgb or ["red", "green", "blue"]
        if not set(wanted) <= set(names):
            return None
        red, green, blue = (names.index(name) for name in wanted)
        return red, green, blue


class DataConfig(Section):
    """The dataset: images, labels and classes."""

    dataset: str = Field(
        "ade20k", description="Name in the catalogue (`cgrseg data list`), or 'custom'."
    )
    root: str = Field(
        "data/ade/ADEChallengeData2016",
        description="Folder that holds the dataset's own "
        "folders, or its address (s3://...), which is copied into the cache.",
    )
    train_split: str = Field("train", description="Name of the training split.")
    eval_split: str = Field("val", description="Name of the split for validation and evaluation.")
    classes: list[str] | None = Field(
        None,
        description="Class names in id order (custom datasets); none: from the catalogue, or from "
        "<root>/classes.txt.",
    )
    palette: list[tuple[Level, Level, Level]] | None = Field(
        None, description="RGB 0..255 per class; none: the catalogue's, or one made for the count."
    )
    ignore_index: Annotated[int, Field(ge=0, le=255)] = Field(
        255, description="Label value of pixels that loss and metrics ignore."
    )
    zero_is_ignore: bool = Field(
        False,
        description="Custom datasets only: raw 0 means 'unlabeled' and class k is stored as k+1.",
    )
    label_values: dict[Level, Level] | None = Field(
        None,
        description="Custom datasets only: stored label value to class id, such as {0: 0, 128: 1}; "
        "the id 255 ignores a value. None: stored values are class ids.",
    )
    label_threshold: Annotated[int, Field(ge=1, le=255)] | None = Field(
        None,
        description="Custom datasets of two classes only: stored label values from this one on "
        "are class 1, lower ones class 0. 128 reads masks of 0 and 255, also from JPEG files.",
    )
    image_name: str = Field(
        "{stem}",
        description="Custom datasets only: name of an image file without its ending, as in "
        "{stem}_sat; {stem} is what the names of image and label have in common.",
    )
    label_name: str = Field(
        "{stem}",
        description="Custom datasets only: name of a label file without its ending, as in "
        "{stem}_mask; {stem} is the name of its image, or its part in data.image_name.",
    )
    images: str = Field(
        "images", description="Custom datasets: folder of images below root; may hold {split}."
    )
    labels: str = Field(
        "annotations", description="Custom datasets: folder of labels below root; may hold {split}."
    )
    split_lists: dict[str, str] | None = Field(
        None,
        description="Split name to a text file (below root): an image stem a line, the path of an "
        "image, or the paths of an image and its label.",
    )
    val_fraction: Probability = Field(
        0.2,
        description="Custom datasets with neither split folders nor lists: share of images held "
        "out for validation.",
    )
    split_seed: Seed = Field(0, description="Seed of that automatic split.")
    merge: dict[str, list[str]] = Field(
        default_factory=dict, description="New class name to the class names it replaces."
    )
    rename: dict[str, str] = Field(default_factory=dict, description="Old class name to new one.")
    drop: list[str] = Field(
        default_factory=list, description="Class names whose pixels become ignored."
    )
    channels: ChannelsConfig = Field(default_factory=ChannelsConfig)
    extra: Sources = Field(
        default_factory=dict,
        description="Further training sets, such as the folder of `cgrseg autolabel`, with the "
        "number of samples of each per sample of `root`: 1 draws as many from both, whatever "
        "their numbers of images. Their classes must be those of the run, in the same order, or "
        "those of `root` before `merge`, `rename` and `drop`, which are then applied to them too. "
        "All their training images are used. Validation is on `root` alone.",
    )
    unlabeled: Sources = Field(
        default_factory=dict,
        description="Folders of images without labels, with the number of samples of each per "
        "sample of `root`, for `train.teacher`: they count in the distillation alone.",
    )
    workers: Annotated[int, Field(ge=0, le=512)] | None = Field(
        None,
        description="Number of data loader processes per training process; none: one per CPU that "
        "the process may use, at most 4.",
    )
    check: bool = Field(
        True, description="Look for unusable files and labels before the first iteration."
    )

    @property
    def loader_processes(self) -> int:
        """Number of data loader processes: `workers`, or the number that it stands for here."""
        return min(_LOADERS, usable_cpus()) if self.workers is None else self.workers

    @field_validator("image_name", "label_name")
    @classmethod
    def _holds_the_stem(cls, value: str) -> str:
        if value.count("{stem}") != 1 or "/" in value:
            raise ValueError("a name without folders that holds {stem} once, such as {stem}_mask")
        return value

    @model_validator(mode="after")
    def _no_secrets(self) -> DataConfig:
        for name, places in (
            ("root", [self.root]),
            ("extra", self.extra),
            ("unlabeled", self.unlabeled),
        ):
            for place in places:
                refuse_secrets(place, f"data.{name}")
        return self


class PhotometricConfig(Section):
    """Color distortion of 8-bit images; each operation is applied with `probability`."""

    probability: Probability = Field(
        0.5, description="Probability of each of the four color operations."
    )
    brightness: Annotated[float, Field(ge=0, le=255)] = Field(
        32.0, description="Largest change of the brightness in gray levels."
    )
    contrast: tuple[Factor, Factor] = Field(
        (0.5, 1.5), description="Range of the contrast factor, drawn uniformly."
    )
    saturation: tuple[Factor, Factor] = Field(
        (0.5, 1.5), description="Range of the saturation factor, drawn uniformly."
    )
    hue: Annotated[int, Field(ge=0, le=90)] = Field(
        18, description="Largest change of the hue in OpenCV's units (180 is the full circle)."
    )

    @model_validator(mode="after")
    def _ranges_rise(self) -> PhotometricConfig:
        _check_rises("augment.photometric.contrast", self.contrast)
        _check_rises("augment.photometric.saturation", self.saturation)
        return self


class PublishedAugmentConfig(Section):
    """The published training pipeline in order, and variations of its steps."""

    scale: Size = Field((2048, 512), description="Base scale in pixels, in either order.")
    ratio_range: tuple[Ratio, Ratio] = Field(
        (0.5, 2.0), description="Range of the factor of the base scale, drawn uniformly."
    )
    crop_size: Size = Field((512, 512), description="Size of the crop in pixels.")
    progressive: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        max_length=100,
        description="Factors of `crop_size` and `scale` in equal parts of the run, such as "
        "[0.5, 0.75, 1]: smaller images at first cost less time. Crops are rounded to multiples of "
        f"{NETWORK_STRIDE}. [1]: one size (published).",
    )
    max_class_share: Probability = Field(
        0.75,
        description="A crop in which one class covers this share of the labeled pixels or more "
        "is drawn again, up to 10 times in all.",
    )
    flip: Probability = Field(0.5, description="Probability of a horizontal flip.")
    photometric: PhotometricConfig = Field(default_factory=PhotometricConfig)
    vertical_flip: Probability = Field(0.0, description="Probability of a vertical flip.")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0,
        description="Largest rotation of the crop about its center in degrees, either way, drawn "
        "uniformly; pixels from outside the crop are ignored. 0: off.",
    )
    rare_class_crops: Probability = Field(
        0.0,
        description="Probability that a crop contains a pixel of a class drawn uniformly from "
        "those in the image, whatever their size.",
    )
    colour_only: bool = Field(
        False,
        description="Vary colors only: base scale without ratio, middle crop, no flips, no "
        "rotation.",
    )
    crop_first: bool = Field(
        True,
        description="Resize only the part of the image that the crop keeps: the same within one "
        "gray level, faster. Off: the published order, step by step.",
    )
    reduced_decode: bool = Field(
        False,
        description="Decode JPEGs at 1/2, 1/4 or 1/8 of their size where the resize shrinks them "
        "at least that much: faster, but smooths differently than the published resize.",
    )


def _added_augmentations() -> dict[str, Any]:
    """Settings of the entries of :mod:`cgrseg.augmentations`."""

    def probability(description: str) -> Any:
        return Probability, Field(0.0, description=f"Probability of {description}.")

    fields: dict[str, Any] = {}
    for name, operation in OPERATIONS.items():
        low, high = operation.limits
        amount = Annotated[float, Field(ge=low, le=high)]
        fields[name] = probability(operation.description)
        fields[f"{name}_{operation.amount}"] = (
            tuple[amount, amount],  # type: ignore[valid-type]
            Field(operation.default, description=operation.amount_description),
        )
    return fields | {name: probability(mix.description) for name, mix in MIXES.items()}


if TYPE_CHECKING:
    _AddedAugmentations = PublishedAugmentConfig
else:
    _AddedAugmentations = create_model(
        "_AddedAugmentations", __base__=PublishedAugmentConfig, **_added_augmentations()
    )


class AugmentConfig(_AddedAugmentations):
    """The training pipeline, in order."""

    @property
    def stages(self) -> list[AugmentConfig]:
        """Settings of each part of the run, whose crops may grow from part to part."""
        found = []
        for factor in self.progressive:
            scale = tuple(max(1, int(side * factor + 0.5)) for side in self.scale)
            steps = [int(side * factor / NETWORK_STRIDE + 0.5) for side in self.crop_size]
            crop = tuple(max(1, count) * NETWORK_STRIDE for count in steps)
            found.append(self.model_copy(update={"scale": scale, "crop_size": crop}))
        return found

    @model_validator(mode="after")
    def _fits_network(self) -> AugmentConfig:
        _check_rises("augment.ratio_range", self.ratio_range)
        _check_side("augment.scale times augment.ratio_range", self.scale, self.ratio_range[1])
        for name, operation in OPERATIONS.items():
            setting = f"{name}_{operation.amount}"
            _check_rises(f"augment.{setting}", getattr(self, setting))
        if any(side % NETWORK_STRIDE for side in self.crop_size):
            raise ConfigError(
                "augment.crop_size",
                found=f"{list(self.crop_size)}",
                expected=f"two multiples of {NETWORK_STRIDE}, the network's largest stride",
                remedy=f"take {[_next_multiple(side) for side in self.crop_size]}",
            )
        return self


class TestConfig(Section):
    """From an image to a label map at test time."""

    __test__ = False  # pytest would collect the class by its name

    image_bits: Annotated[int, Field(ge=8, le=16)] = Field(
        16,
        description="Bits that the values of 16-bit images use, in training too: 12 reads 0..4095 "
        "as 0..255. 8-bit images are not changed.",
    )
    scale: Size = Field((2048, 512), description="Long side and short side, in either order.")
    resize: Literal["keep_ratio", "keep_ratio_divisible", "none"] = Field(
        "keep_ratio",
        description="'keep_ratio': within scale, then padded to a multiple of `divisor`; "
        "'keep_ratio_divisible': within scale, then each side resized up to a multiple of "
        "`divisor`; 'none': native resolution, padded.",
    )
    divisor: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="Divisor of the sides of the network's input, in pixels."
    )
    mode: Literal["whole", "slide"] = Field(
        "whole", description="Whole image ('whole') or sliding window ('slide')."
    )
    crop_size: Size = Field((512, 512), description="Window size of 'slide' in pixels.")
    stride: Size = Field((341, 341), description="Stride of 'slide' in pixels: down x right.")
    ratios: list[Ratio] = Field(
        default_factory=lambda: [1.0],
        min_length=1,
        max_length=100,
        description="Factors of the scale whose results are averaged.",
    )
    flip: bool = Field(False, description="Average with the prediction of the mirrored image.")

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> TestConfig:
        _check_side("test.scale times test.ratios", self.scale, max(self.ratios))
        if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
            raise ConfigError(
                "test.stride",
                found=f"{list(self.stride)}, larger than the window {list(self.crop_size)}",
                expected="steps of at most a window, so that every pixel is seen",
                remedy="make test.stride smaller (two thirds of test.crop_size is usual)",
            )
        return self

    @property
    def image_channels(self) -> ChannelsConfig | None:
        """Channels of an image; None: 8-bit RGB."""
        return None


class ChannelTestConfig(TestConfig):
    """Test settings of a network for other channels than 8-bit RGB.

    Checkpoints and exported files keep the channels among their test settings, since predictions
    need both.
    """

    channels: ChannelsConfig

    @property
    def image_channels(self) -> ChannelsConfig:
        """See :class:`TestConfig`."""
        return self.channels


class OptimizerConfig(Section):
    """AdamW or Muon with the published parameter groups."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="'adamw' (published); 'muon': Muon for the weights of layers that mix "
        "channels, AdamW for everything else, at the same learning rate.",
    )
    lr: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.2e-4, description="Learning rate of the base group."
    )
    betas: tuple[BelowOne, BelowOne] = Field((0.9, 0.999), description="Betas of AdamW.")
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.01, description="Decoupled weight decay of AdamW."
    )
    head_multiplier: Annotated[float, Field(gt=0, le=10_000)] = Field(
        10.0, description="Factor of the learning rate for parameters whose name contains 'head'."
    )
    layer_decay: Annotated[float, Field(ge=0.01, le=1)] = Field(
        1.0,
        description="Factor of the learning rate per layer of the backbone, counted from its end; "
        "1 gives every layer the same learning rate (published).",
    )
    clip_norm: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None,
        description="Maximum gradient norm over all parameters; none: no clipping (published).",
    )


class ScheduleConfig(Section):
    """Number of iterations and learning-rate schedule."""

    curve: Literal["poly", "cosine", "one_cycle"] = Field(
        "poly",
        description="Learning rate over the iterations: 'poly', polynomial decay to 0 (published); "
        "'cosine', half a cosine to 0; 'one_cycle', from a 25th up during the first 30 % and down "
        "to 0, both along a cosine.",
    )
    max_iters: Count = Field(160_000, description="Total number of optimizer steps.")
    warmup_iters: CountOrNone = Field(1_500, description="Number of linear warm-up steps.")
    warmup_ratio: Probability = Field(
        1e-6, description="Factor of the learning rate at the first step."
    )
    power: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="Exponent of the polynomial learning-rate decay to 0 ('poly')."
    )


class CrossEntropyConfig(Section):
    """Cross-entropy on logits upsampled to the label's size."""

    average: Literal["all", "valid"] = Field(
        "all", description="Divide by all pixels (published) or by those that are not ignored."
    )
    label_smoothing: Probability = Field(
        0.0, description="Share of the target spread evenly over all classes."
    )
    class_weights: list[Weight] | Literal["auto", "median"] | None = Field(
        None,
        description="Factor of the cross-entropy per class, in id order; none: all 1. From the "
        "training labels: 'auto', 1 / ln(1.02 + share of the pixels), or 'median', the median of "
        "the shares divided by the share, each in the images with the class; both scaled so that "
        "the mean over the pixels is 1.",
    )
    ohem_threshold: Probability | None = Field(
        None,
        description="Probability threshold of online hard example mining: the loss is averaged "
        "over pixels whose true class gets less; none: over every pixel (published).",
    )
    ohem_min_pixels: Count = Field(
        100_000, description="Minimum number of hard pixels per image, whatever their probability."
    )


if TYPE_CHECKING:
    _AddedTerms = CrossEntropyConfig
else:
    _AddedTerms = create_model(
        "_AddedTerms",
        __base__=CrossEntropyConfig,
        **{
            f"{name}_weight": (Weight, Field(0.0, description=term.description))
            for name, term in TERMS.items()
        },
    )


class SSALossConfig(Section):
    """Losses that the SSA head adds to the loss of its prediction; the defaults are published.

    'Guided' is a second prediction, in training alone, whose prototypes come from the ground truth.
    """

    initial_weight: Weight = Field(
        1.0,
        description="Weight of the same loss on the initial prediction, averaged over the labeled "
        "pixels whatever `loss.average` says.",
    )
    guided_weight: Weight = Field(
        1.0,
        description="Weight of the same loss on the guided prediction, averaged over the labeled "
        "pixels whatever `loss.average` says.",
    )
    dice_weight: Weight = Field(
        1.0, description="Weight of a Dice loss on the masks of prediction and guided prediction."
    )
    response_weight: Weight = Field(
        1.0, description="Weight of the distillation of the guided prediction's probabilities."
    )
    semantic_weight: Weight = Field(
        10.0, description="Weight of the distillation of distances between semantic prototypes."
    )
    spatial_weight: Weight = Field(
        0.4, description="Weight of the distillation of spatial prototypes."
    )


class LossConfig(_AddedTerms):
    """Cross-entropy on logits upsampled to the label's size, and the added loss terms."""

    initial_weight: Weight = Field(
        0.0,
        description="Weight of the same loss on the first prediction of the dpg head; 0: none. The "
        "ssa head has `loss.ssa.initial_weight`.",
    )
    distill_weight: Weight = Field(
        1.0,
        description="With `train.teacher`: weight of the divergence of the class probabilities "
        "from the teacher's, averaged over the pixels of the logits, whatever their labels.",
    )
    distill_temperature: Annotated[float, Field(ge=0.1, le=100)] = Field(
        1.0,
        description="With `train.teacher`: divisor of both logits; above 1, the teacher's small "
        "probabilities count more.",
    )
    distill_features: Weight = Field(
        0.0,
        description="With a checkpoint as `train.teacher`: weight of the distance of the attention "
        "maps of the backbones' features at strides 8, 16 and 32; 0: none.",
    )
    ssa: SSALossConfig = Field(default_factory=SSALossConfig)


class TrainConfig(Section):
    """The training loop."""

    batch_size: BatchSize | Literal["auto"] = Field(
        4,
        description="Number of images per process and step. 'auto': the largest power of two that "
        "fits into memory, measured when the run starts and kept with it; with `accumulate`, at "
        "most the 16 images per optimizer step of the published recipe.",
    )
    accumulate: BatchSize = Field(
        1, description="Number of batches whose gradients are averaged before one optimizer step."
    )
    eval_interval: Count = Field(4_000, description="Number of iterations between evaluations.")
    evaluate: bool = Field(True, description="Evaluate during training.")
    checkpoint_interval: Count | None = Field(
        None, description="Number of iterations between checkpoints; none: as eval_interval."
    )
    keep_best: CountOrNone = Field(
        0,
        description="Besides best.pth, keep the checkpoints of this many best evaluations, named "
        "by iteration.",
    )
    patience: Count | None = Field(
        None,
        description="Stop early after this many evaluations without a better mIoU; none: never.",
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay per step of the weight averaging (EMA); the averaged weights are "
        "evaluated and kept. None: no averaging (published).",
    )
    ema_warmup: bool = Field(
        False,
        description="Use at most (1 + n) / (10 + n) as `ema_decay` after n steps, so that the "
        "average forgets the first weights.",
    )
    average_last: Probability = Field(
        0.0,
        description="Share of the run, at its end, over which the plain mean of the weights and "
        "batch norm statistics is taken (stochastic weight averaging), instead of `ema_decay`; "
        "the mean is evaluated and kept. 0: none (published).",
    )
    load_from: str | None = Field(
        None,
        description="Checkpoint, hub id or name of `cgrseg models` whose weights the whole network "
        "starts from (fine-tuning); another number of classes keeps everything but the classifier.",
    )
    teacher: str | None = Field(
        None,
        description="Distillation: checkpoint, hub id, name of `cgrseg models` or exported file of "
        "a network with the same classes, whose predictions are learned too (`loss.distill_...`).",
    )
    accept_data: str | None = Field(
        None,
        description="Resume although palette, label rule or image list differ from those of the "
        "checkpoint: the value that the message about it names; none: stop.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32",
        description="Arithmetic of the network. 'auto': bf16 where the device computes it in "
        "hardware, else fp32; the run keeps what was chosen. 'fp64' is for checks.",
    )
    compile: bool = Field(False, description="Run the network through torch.compile.")
    channels_last: bool = Field(False, description="Use the channels-last memory layout.")
    seed: Seed = Field(
        0, description="Seed of the initial weights, the image order and the augmentation."
    )
    deterministic: bool = Field(False, description="Use deterministic kernels only (slower).")
    log_interval: Count = Field(50, description="Number of iterations between lines of the log.")
    log_images: Annotated[int, Field(ge=0, le=1000)] = Field(
        4,
        description="Number of images of the evaluation split whose label and prediction each "
        "evaluation shows in TensorBoard.",
    )
    wandb: bool = Field(False, description="Log to Weights & Biases too (extra `wandb`).")
    mlflow: bool = Field(False, description="Log to MLflow too (extra `mlflow`).")

    @model_validator(mode="after")
    def _one_average(self) -> TrainConfig:
        if self.average_last and self.ema_decay is not None:
            raise ConfigError(
                "train.average_last",
                found=f"{self.average_last:g} together with train.ema_decay={self.ema_decay:g}",
                expected="one kind of weight averaging",
                remedy="set train.average_last=0 or train.ema_decay=null",
            )
        if self.ema_warmup and self.ema_decay is None:
            raise ConfigError(
                "train.ema_warmup",
                found="true without train.ema_decay",
                expected="the decay that it limits",
                remedy="for example train.ema_decay=0.999",
            )
        return self

    @property
    def images_per_batch(self) -> int:
        """`batch_size` as a number.

        Raises:
            ConfigError: it is "auto", and no training has measured it.
        """
        if isinstance(self.batch_size, int):
            return self.batch_size
        raise ConfigError(
            "train.batch_size",
            found="auto, which only a training on the folder of a dataset measures",
            expected="a number of images",
            remedy="give one, for example train.batch_size=8",
        )


class Config(Section):
    """All settings of a run: the content of `config.json` in a run folder."""

    name: str = Field("cgrseg-t_ade20k_160k", description="Name of the run and of its folder.")
    work_dir: str | None = Field(None, description="Folder of the run; none: ./work_dirs/<name>.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    test: TestConfig = Field(default_factory=TestConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    @field_validator("name")
    @classmethod
    def _names_a_folder_below(cls, value: str) -> str:
        path = PurePath(value)
        if not value.strip() or path.is_absolute() or ".." in path.parts or "\0" in value:
            raise ConfigError(
                "name",
                found=repr(value),
                expected="a name for the run and its folder below work_dirs",
                remedy="choose a plain name; work_dir puts the run into any other folder",
            )
        return value

    def __repr__(self) -> str:
        """Summary in one line; `model_dump()` has all settings."""
        return (
            f"Config({self.name!r}: {self.model.name} on {self.data.dataset} in {self.data.root}, "
            f"{self.schedule.max_iters} iterations of {self.train.batch_size} images, "
            f"lr {self.optimizer.lr:g}, {self.train.precision}, into {self.run_dir})"
        )

    def __str__(self) -> str:
        return repr(self)

    @model_validator(mode="after")
    def _teaches(self) -> Config:
        if self.data.unlabeled and self.train.teacher is None:
            raise ConfigError(
                "data.unlabeled",
                found="images without labels, and no train.teacher",
                expected="a network that says what is in them",
                remedy="set train.teacher, or label them with `cgrseg autolabel` for data.extra",
            )
        loss = self.loss
        if self.train.teacher is not None and not (loss.distill_weight or loss.distill_features):
            raise ConfigError(
                "train.teacher",
                found="loss.distill_weight=0 and loss.distill_features=0",
                expected="a weight for what the teacher says",
                remedy="for example loss.distill_weight=1",
            )
        return self

    @property
    def preprocessing(self) -> TestConfig:
        """Test settings with the channels of the images, as a checkpoint keeps them."""
        if self.data.channels.names is None:
            return self.test
        return ChannelTestConfig(**self.test.model_dump(), channels=self.data.channels)

    @property
    def run_dir(self) -> str:
        """Folder of the run, relative to the working directory unless absolute."""
        return self.work_dir or f"work_dirs/{self.name}"


def walk_settings(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain setting below a section as (dotted name, annotation), in schema order."""
    for name, annotation in field_annotations(section).items():
        inner = subsection(annotation)
        if inner is None:
            yield prefix + name, annotation
        else:
            yield from walk_settings(inner, f"{prefix}{name}.")


def find_setting(path: str) -> Any | None:
    """Annotation of a dotted name (a section counts); None when there is no such setting."""
    annotation: Any = Config
    for part in path.split("."):
        inner = subsection(annotation)
        if inner is None or part not in inner.model_fields:
            return None
        annotation = field_annotations(inner)[part]
    return annotation


def _check_rises(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if low > high:
        raise ConfigError(
            name,
            found=f"[{low:g}, {high:g}]",
            expected="the lower bound first",
            remedy=f"write [{high:g}, {low:g}]",
        )


def _check_side(name: str, scale: Size, ratio: float) -> None:
    longest = max(scale) * ratio
    if longest > MAX_SIDE:
        raise ConfigError(
            name,
            found=f"{max(scale)} x {ratio:g} = {longest:.0f} pixels for the longest side",
            expected=f"at most {MAX_SIDE} pixels",
            remedy="make one of the two smaller",
        )


def _next_multiple(side: int) -> int:
    return -(-side // NETWORK_STRIDE) * NETWORK_STRIDE
