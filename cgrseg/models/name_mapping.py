"""Translation of parameter names of ImageNet backbones.

The EfficientFormerV2 authors' files (`eformer_*_450.pth`) use the published names
directly.  timm's files (`timm/efficientformerv2_*.snap_dist_in1k`) have other names for the same
tensors.  The names of timm's module are in `tests/golden/timm_keys.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# ImageNet classifier: absent from a feature backbone.
_CLASSIFIER = re.compile(r"(norm|head|dist_head|head_dist)\.(weight|bias|running_|num_batches)")

# Attention: timm has `<name>.conv` and `<name>.bn`, published sequences have numbers.
_ATTENTION = (
    (r"q\.local\.", "q.local.0."),
    (r"q\.proj\.conv\.", "q.proj.0."),
    (r"q\.proj\.bn\.", "q.proj.1."),
    (r"proj\.conv\.", "proj.1."),  # an activation comes first
    (r"proj\.bn\.", "proj.2."),
    (r"(stride_conv|q|k|v|v_local)\.conv\.", r"\1.0."),
    (r"(stride_conv|q|k|v|v_local)\.bn\.", r"\1.1."),
)
_MLP = (
    (r"(fc1|fc2|mid)\.conv\.", r"\1."),
    (r"fc1\.bn\.", "norm1."),
    (r"fc2\.bn\.", "norm2."),
    (r"mid\.bn\.", "mid_norm."),
)
_STEM = (
    (r"stem\.conv1\.conv\.", "patch_embed.0."),
    (r"stem\.conv1\.bn\.", "patch_embed.1."),
    (r"stem\.conv2\.conv\.", "patch_embed.3."),
    (r"stem\.conv2\.bn\.", "patch_embed.4."),
)


def is_timm(names: Mapping[str, Tensor] | set[str]) -> bool:
    """Whether the names are those of timm's EfficientFormerV2."""
    return "stem.conv1.conv.weight" in names


def is_imagenet_classifier(name: str) -> bool:
    """Whether a name relative to the backbone belongs to the ImageNet classifier."""
    return _CLASSIFIER.match(name) is not None


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate timm's names and shapes to the published backbone's.

    The classifier, and the index buffer of older files, are left out.  Unknown names are kept, so
    that the load report shows them.
    """
    translated = {}
    for name, value in state_dict.items():
        if is_imagenet_classifier(name) or name.endswith(".attention_bias_idxs"):
            continue
        new = timm_name(name)
        if ".layer_scale_" in new and value.ndim == 1:
            value = value[:, None, None]
        translated[new] = value
    return translated


def timm_name(name: str) -> str:
    """Published name of a tensor of timm; an unknown name is returned unchanged."""
    if name.startswith("stem."):
        return _first_match(_STEM, name)
    # `features_only` wrappers write `stages_0` for `stages.0`.
    found = re.fullmatch(r"stages[._](\d)\.(downsample|blocks\.(\d+))\.(.+)", name)
    if found is None:
        return name
    stage, part, block, rest = found.groups()
    if part == "downsample":
        # The published list holds the downsampling before the blocks of its stage.
        place = f"network.{2 * int(stage) - 1}."
        if rest.startswith("attn."):
            return f"{place}attn.{_first_match(_ATTENTION, rest[len('attn.') :])}"
        pair = ("conv", "bn") if stage == "3" else ("proj", "norm")
        return place + re.sub(r"^conv\.(conv|bn)\.", lambda m: pair[m.group(1) == "bn"] + ".", rest)
    place = f"network.{2 * int(stage)}.{block}."
    if scale := re.fullmatch(r"ls([12])\.gamma", rest):
        return f"{place}layer_scale_{scale.group(1)}"
    if rest.startswith("token_mixer."):
        return f"{place}token_mixer.{_first_match(_ATTENTION, rest[len('token_mixer.') :])}"
    if rest.startswith("mlp."):
        return f"{place}mlp.{_first_match(_MLP, rest[len('mlp.') :])}"
    return name


def _first_match(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        new, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return new
    return name
