"""CGRSeg: backbone, pyramid context, spatial feature reconstruction, guided head.

Paper: "Context-Guided Spatial Feature Reconstruction for Efficient Semantic
Segmentation", Ni et al., ECCV 2024, arXiv 2405.06228, figure 2.  Published files:
`mmseg/models/decode_heads/cgr_head.py` and `decode_head.py`, whose arithmetic and
parameter names are kept.  This file only composes; the mathematics is in
:mod:`~cgrseg.models.efficientformer_v2`, :mod:`~cgrseg.models.rcm`,
:mod:`~cgrseg.models.pyramid`, :mod:`~cgrseg.models.dpg_head` and
:mod:`~cgrseg.models.ssa_head`.

Legend: N images, H x W pixels, C_i channels of scale i, M head width, K classes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from cgrseg.class_names import numbered_names
from cgrseg.config.schema import ChannelsConfig
from cgrseg.errors import MALFORMED, CGRSegError
from cgrseg.files import write_json
from cgrseg.locks import locking
from cgrseg.models.checkpoint_files import locate_pretrained, unusable_config
from cgrseg.models.dpg_head import DPGHead
from cgrseg.models.efficientformer_v2 import BiasForm, EfficientFormerV2
from cgrseg.models.layers import is_recorded
from cgrseg.models.pyramid import ReconstructionHead
from cgrseg.models.ssa_head import SSAHead, SSAOutput
from cgrseg.models.weights import load_weights, save_safetensors
from cgrseg.variants import NETWORK_STRIDE, VARIANTS, HeadName, variant_sizes

# Beyond these a config.json describes no network of this package.
_MOST = {
    "num_classes": 65_535,
    "context_blocks": 1_000,
    "channels": 65_536,
    "in_channels": 128,
}
_LOG = logging.getLogger("cgrseg.models")


HEADS: dict[str, type[ReconstructionHead]] = {"dpg": DPGHead, "ssa": SSAHead}
"""Heads by the value of `model.head`."""


class CGRSeg(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="cgrseg",
    repo_url="https://github.com/nizhenliang/CGRSeg",
    paper_url="https://arxiv.org/abs/2405.06228",
    pipeline_tag="image-segmentation",
    tags=["semantic-segmentation", "cgrseg"],
):
    """The whole network; build it with :func:`cgrseg.create_model`.

    Args:
        variant: name in :data:`cgrseg.variants.VARIANTS`.
        num_classes: K.
        context_blocks: number of RCMs on the pyramid; None: that of the variant.
        channels: M, head width; None: that of the variant.
        dropout: probability of channel dropout before the classifier.
        drop_path: stochastic depth rate of the last backbone block; None: that of the variant.
        freeze_norm: batch norms of the backbone keep their stored statistics.
        freeze_backbone: the backbone does not train.
        attention_bias: "published" (required by published weights), or "geometric": by true
            offsets at every size, from ImageNet's table (``cgrseg.models.attention_bias``).
        classes: K class names, saved with the weights.
        palette: K colors, RGB 0..255, saved with the weights.
        preprocessing: test settings (:class:`cgrseg.config.schema.TestConfig` as a dictionary,
            with the channels of the images where they are not 8-bit RGB), saved with the weights.
        in_channels: C, number of channels of an image.
        head: "dpg", dynamic prototype guided (published), or "ssa", semantic and spatial adaptive.

    Raises:
        ValueError: unknown variant, head or attention bias, not K classes or colors, or no channel.
    """

    def __init__(
        self,
        variant: str = "cgrseg_t",
        num_classes: int = 150,
        *,
        context_blocks: int | None = None,
        channels: int | None = None,
        dropout: float = 0.1,
        drop_path: float | None = None,
        freeze_norm: bool = False,
        freeze_backbone: bool = False,
        attention_bias: BiasForm = "published",
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        preprocessing: dict[str, Any] | None = None,
        in_channels: int = 3,
        head: HeadName = "dpg",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}; "
                "cgrseg.list_models() lists them"
            )
        for name, choice, choices in (
            ("attention_bias", attention_bias, get_args(BiasForm)),
            ("head", head, HEADS),
        ):
            if choice not in choices:
                raise ValueError(f"{name}: got {choice!r}, expected one of {', '.join(choices)}")
        for name, count in (("num_classes", num_classes), ("in_channels", in_channels)):
            if count < 1:
                raise ValueError(f"{name}: got {count}, expected at least 1")
        for name, values in (("classes", classes), ("palette", palette)):
            if values is not None and len(values) != num_classes:
                raise ValueError(
                    f"{name}: got {len(values)} entries, expected num_classes = {num_classes}"
                )
        given = {"context_blocks": context_blocks, "channels": channels, "drop_path": drop_path}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        table = replace(variant_sizes(variant, head), **changes)
        self.variant = variant
        self.head = head
        self.context_blocks = table.context_blocks
        self.drop_path_rate = table.drop_path
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.classes = tuple(classes) if classes is not None else None
        self.palette = (
            tuple((int(r), int(g), int(b)) for r, g, b in palette) if palette is not None else None
        )
        self.preprocessing = preprocessing
        self.initial_weights = ""  # of the training, as its checkpoint describes them
        self.backbone = EfficientFormerV2(
            *(table.backbone, table.drop_path, freeze_norm, attention_bias, freeze_backbone),
            in_channels=in_channels,
        )
        self.decode_head = HEADS[head](table, self.backbone.channels[1:], num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at 1/8 of the input size.

        Args:
            x: (N, C, H, W) float, normalized, C = 3 in RGB; H and W multiples of 32.

        Returns:
            (N, K, H / 8, W / 8).

        Raises:
            ValueError: input of another rank, channel count, dtype or size.
        """
        return self.forward_with_initial(x)[0]

    def forward_with_initial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Final logits, and the initial logits that give the class centers; (N, K, H/8, W/8)."""
        if not is_recorded():
            _check_input(x, self.in_channels)
        logits, initial = self.decode_head(self.backbone(x)[1:])
        return logits, initial

    def forward_with_truth(self, x: Tensor, label: Tensor, ignore_index: int = 255) -> SSAOutput:
        """Outputs of the SSA head for its training losses.

        Args:
            x: as for :meth:`forward`.
            label: (N, H, W) integers.
            ignore_index: label value of pixels without a class.
        """
        if not is_recorded():
            _check_input(x, self.in_channels)
        head = cast(SSAHead, self.decode_head)
        return head.forward_with_truth(self.backbone(x)[1:], label, ignore_index)

    @property
    def rgb_channels(self) -> tuple[int, int, int] | None:
        """Indices of red, green and blue among the channels, or None where they are not known."""
        channels = (self.preprocessing or {}).get("channels")
        if channels is None:
            return (0, 1, 2) if self.in_channels == 3 else None
        try:
            return ChannelsConfig(**channels).rgb_indices
        except (ValueError, TypeError, CGRSegError):  # settings that somebody edited
            return None

    def extra_repr(self) -> str:
        """Text that `repr` shows above the submodules."""
        text = f"{self.variant}, num_classes={self.num_classes}"
        text += f", context_blocks={self.context_blocks}, head={self.head}"
        return f"{text}, freeze_backbone=True" if self.backbone.frozen else text

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this network, as plain values for JSON."""
        table = VARIANTS[self.variant]
        return {
            "variant": self.variant,
            "num_classes": self.num_classes,
            "context_blocks": self.context_blocks,
            "channels": self.decode_head.conv_seg.in_channels,
            "dropout": self.decode_head.dropout.p,
            "drop_path": self.drop_path_rate if self.drop_path_rate != table.drop_path else None,
            "freeze_norm": self.backbone.freeze_norm,
            "freeze_backbone": self.backbone.frozen,
            "attention_bias": self.backbone.attention_bias,
            "classes": list(self.classes) if self.classes is not None else None,
            "palette": [[int(v) for v in color] for color in self.palette]
            if self.palette is not None
            else None,
            "preprocessing": self.preprocessing,
            **({} if self.in_channels == 3 else {"in_channels": self.in_channels}),
            **({} if self.head == "dpg" else {"head": self.head}),
        }

    @locking(lambda given: given["save_directory"])
    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write `model.safetensors`, `config.json` and `preprocessor_config.json` into a folder.

        `cgrseg` and transformers (`AutoModelForSemanticSegmentation`) both read the folder.

        Args:
            save_directory: the folder; created if missing.
            **options: as for `huggingface_hub.PyTorchModelHubMixin.save_pretrained`.

        Raises:
            EnvironmentProblem: another command writes into the folder, or it cannot be written.
        """
        result: str | None = super().save_pretrained(save_directory, **options)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        # The present options, not the arguments of the constructor.
        self._hub_mixin_config = {**self.options(), **self._transformers_options()}
        save_safetensors(self, save_directory / "model.safetensors")
        # What transformers' AutoImageProcessor needs beside config.json.
        write_json(
            save_directory / "preprocessor_config.json", {"preprocessing": self.preprocessing}
        )

    def _transformers_options(self) -> dict[str, Any]:
        """Keys of `config.json` by which transformers chooses the classes of cgrseg.huggingface."""
        names = self.classes or numbered_names(self.num_classes)
        return {
            "model_type": "cgrseg",
            "architectures": ["CGRSegForSemanticSegmentation"],
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> CGRSeg:
        """Load a folder of `save_pretrained` or a hub id.

        Args:
            pretrained_model_name_or_path: the folder or the id.
            **options: as for `huggingface_hub.PyTorchModelHubMixin.from_pretrained`.

        Raises:
            WeightsError: weights or `config.json` that cannot be used.
        """
        try:
            found: CGRSeg = super().from_pretrained(pretrained_model_name_or_path, **options)
            return found
        except (ValueError, AttributeError, RecursionError) as error:
            raise unusable_config(pretrained_model_name_or_path, str(error)) from error

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        **model_kwargs: Any,
    ) -> CGRSeg:
        for name in ("proxies", "resume_download", "strict"):  # older hub clients pass these
            model_kwargs.pop(name, None)
        path = locate_pretrained(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        left_out: list[str] = []
        for name in ("classes", "palette"):  # of the saved network, when the caller asks for
            values = model_kwargs.get(name)  # another number of classes
            if values is not None and not isinstance(values, list | tuple):
                problem = f"{name} is of type {type(values).__name__}"
                raise unusable_config(model_id, problem)
            if values is not None and len(values) != model_kwargs.get("num_classes", 150):
                model_kwargs[name] = None
                left_out.append(f"{len(values)} entries of {name}")
        for name, most in _MOST.items():
            value = model_kwargs.get(name)
            if value is not None and (type(value) is not int or not 0 <= value <= most):
                raise unusable_config(model_id, f"{name} is {str(value)[:60]!r}")
        try:
            model = cls(**model_kwargs)
        except MALFORMED as error:
            raise unusable_config(model_id, str(error)) from error
        report = load_weights(model, path, verbose=False)
        if report.fresh:
            print(report, file=sys.stderr)
        elif left_out:
            _LOG.warning(
                "%s: it holds %s for %d classes; they are left out",
                path,
                " and ".join(left_out),
                model.num_classes,
            )
        return model.to(map_location).eval()


def _check_input(x: Tensor, channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != channels:
        kind = "RGB images" if channels == 3 else f"images of {channels} channels"
        raise ValueError(
            f"input: got shape {tuple(x.shape)}, expected (N, {channels}, H, W): a batch of "
            f"{kind}; add the batch axis with image[None], or drop an alpha channel"
        )
    if not x.is_floating_point():
        raise ValueError(
            f"input: got {x.dtype}, expected a float tensor normalized by mean and standard "
            "deviation; cgrseg.Predictor does that for images"
        )
    height, width = x.shape[-2:]
    if height % NETWORK_STRIDE or width % NETWORK_STRIDE or not height or not width:
        raise ValueError(
            f"input: got {height}x{width} pixels, expected both sides to be multiples of "
            f"{NETWORK_STRIDE} (the network's largest stride); pad the image, or let "
            "cgrseg.Predictor do it"
        )
