"""Distillation: a network learns to predict what a trained network, its teacher, predicts.

The loss compares the logits of both, at their own resolution
(:func:`cgrseg.training.losses.distillation_loss`), and, between two CGRSeg networks, where the
features are strong (:func:`cgrseg.training.losses.attention_loss`).  It needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cgrseg.class_names import clean_name, differences, listed
from cgrseg.config.schema import Config
from cgrseg.config.settings import stored_test_settings
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import ConfigError
from cgrseg.formats import is_exported
from cgrseg.inference.exported_backend import open_exported
from cgrseg.inference.fast.network import fast_form
from cgrseg.models import load_model
from cgrseg.models.digest import weights_digest
from cgrseg.provenance import settings_digest
from cgrseg.training.losses import attention_loss, distillation_loss


class Teacher:
    """The network of `train.teacher`: a checkpoint in its folded form, or an exported file.

    It has no gradients and no random numbers, and shares nothing with the network under training.

    Args:
        config: config of the run, with a teacher.
        spec: dataset of the run.

    Attributes:
        digest: SHA-256 of the checkpoint's weights, or of an exported file; of a file of a format
            with checksums of its own, of what it was made from.

    Raises:
        ConfigError: a teacher with other classes, another number of classes or other channels; or
            an exported file that cannot do what the run needs.
        WeightsError: a file that cannot be used.
    """

    def __init__(self, config: Config, spec: DatasetSpec) -> None:
        source = self._source = str(config.train.teacher)
        self._config = config
        classes: Sequence[str] | None
        self._exported = open_exported(source, keep_memory=False) if is_exported(source) else None
        if self._exported is not None:
            about = self._exported.description
            classes, stored = about.classes, about.test
            made_from = [about.kind, about.precision, about.source_digest]
            self.digest = about.file_digest or settings_digest(made_from)
            count, channels = about.num_classes, about.in_channels
        else:
            model = load_model(source, verbose=False)
            classes, stored, self.digest = model.classes, model.preprocessing, weights_digest(model)
            count, channels = model.num_classes, model.in_channels
            precision = config.train.precision
            self._network = fast_form(
                model, precision=precision if precision in ("bf16", "fp16") else "fp32"
            )
        self._refuse_other_classes(classes, count, spec)
        self._refuse_other_channels(stored_test_settings(stored, source).image_channels)
        if self._exported is not None:
            self._refuse_unfit_export(channels)

    def to(self, device: torch.device) -> None:
        """Move a checkpoint's network to a device; an exported file runs on the CPU."""
        if self._exported is None:
            self._network.to(device)

    def add_terms(
        self, terms: dict[str, Tensor], image: Tensor, logits: Tensor, features: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Add the terms of the distillation to those of the labels.

        Args:
            terms: terms by name; `loss` is the sum that is differentiated.
            image: (N, C, H, W), the batch.
            logits: (N, K, H/8, W/8) of the network under training.
            features: (N, C_i, H/s, W/s) of its backbone at strides s of 8, 16, 32; empty where
                `loss.distill_features` is 0.
        """
        loss = self._config.loss
        targets, strong = self._run(image)
        terms = dict(terms)
        if loss.distill_weight > 0:
            terms["loss_distill"] = distillation_loss(logits, targets, loss.distill_temperature)
            terms["loss"] = terms["loss"] + loss.distill_weight * terms["loss_distill"]
        if loss.distill_features > 0:
            terms["loss_features"] = attention_loss(features, strong)
            terms["loss"] = terms["loss"] + loss.distill_features * terms["loss_features"]
        return terms

    def _run(self, image: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Logits and features of a batch; no features of an exported file."""
        with torch.no_grad():
            if self._exported is not None:
                return self._exported.logits(image).to(image.device), ()
            network = self._network
            network.prepare(image.shape[2], image.shape[3])
            features = network.backbone(image.to(next(network.parameters()).dtype))
            return network.head(features), features

    def _refuse_other_classes(
        self, classes: Sequence[str] | None, count: int, spec: DatasetSpec
    ) -> None:
        found = f"{count} classes" if count != spec.num_classes else None
        if found is None and classes is not None:
            found = differences([clean_name(str(name)) for name in classes], spec.classes)
        if found is not None:
            raise ConfigError(
                "train.teacher",
                found=f"{self._source} has other classes than the data: {found}",
                expected=f"the classes of the data, in this order: {listed(spec.classes)}",
                remedy="take a teacher that was trained on these classes",
            )

    def _refuse_other_channels(self, channels: object) -> None:
        if channels != self._config.preprocessing.image_channels:
            raise ConfigError(
                "train.teacher",
                found=f"{self._source} takes other channels, or the same with another mean or "
                "deviation",
                expected="the settings data.channels of this run",
                remedy="give data.channels as the teacher's config.json has it, or take another "
                "teacher",
            )

    def _refuse_unfit_export(self, channels: int) -> None:
        assert self._exported is not None
        if self._config.loss.distill_features > 0:
            raise ConfigError(
                "loss.distill_features",
                found=f"{self._source}, an exported file, which gives no features",
                expected="a checkpoint as train.teacher",
                remedy="set loss.distill_features=0, or train.teacher to the checkpoint",
            )
        for part in self._config.augment.stages:  # refuses label maps and sizes that do not fit
            self._exported.logits(np.zeros((1, channels, *part.crop_size), np.float32))
