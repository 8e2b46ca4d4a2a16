"""Config of CGRSeg for transformers: `config.json` of a folder of `save_pretrained`."""

from __future__ import annotations

import importlib
from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


class CGRSegConfig(PretrainedConfig):  # type: ignore[misc]
    """Arguments of :class:`cgrseg.models.CGRSeg`, and transformers' own keys.

    Args:
        num_classes: number of classes, where `id2label` is not given.
        **options: further arguments of :class:`cgrseg.models.CGRSeg`, and of transformers'
            `PretrainedConfig`. `num_labels` replaces `num_classes`: as in transformers, another
            number starts a new classifier.
    """

    model_type = "cgrseg"

    def __init__(self, num_classes: int = 150, **options: Any) -> None:
        # The first config registers the classes that need PyTorch.
        importlib.import_module("cgrseg.huggingface.classes")
        if "id2label" not in options and "num_labels" not in options:
            options["num_labels"] = num_classes
        super().__init__(**options)


AutoConfig.register(CGRSegConfig.model_type, CGRSegConfig, exist_ok=True)
