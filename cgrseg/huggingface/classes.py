"""Network and image processor of CGRSeg for transformers.

A pipeline of them gives the labels of :class:`cgrseg.Predictor`: the image processor resizes with
OpenCV's arithmetic, and its `post_process_semantic_segmentation` decodes as
:mod:`cgrseg.inference.decode` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cgrseg.config.schema import TestConfig
from cgrseg.config.settings import stored_test_settings
from cgrseg.errors import DataError
from cgrseg.huggingface.config import CGRSegConfig
from cgrseg.inference.decode import WholeView, decode
from cgrseg.inference.device_decode import decode_on_device
from cgrseg.inference.image_sources import as_image
from cgrseg.inference.segmenting import is_plain
from cgrseg.inference.views import EvalTransform, NetworkInput
from cgrseg.models import CGRSeg
from cgrseg.ops import upsample_cross_entropy

_OPTIONS = tuple(inspect.signature(CGRSeg).parameters)


class CGRSegForSemanticSegmentation(PreTrainedModel):  # type: ignore[misc]
    """The network under the parameter names of :class:`cgrseg.models.CGRSeg`.

    Args:
        config: its arguments; `num_labels` gives the number of classes.

    Raises:
        ValueError: arguments that :class:`cgrseg.models.CGRSeg` refuses.
    """

    config_class = CGRSegConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CGRSegConfig) -> None:
        super().__init__(config)
        options = {name: getattr(config, name) for name in _OPTIONS if hasattr(config, name)}
        for name in ("classes", "palette"):  # of the saved network, when another number is asked
            if len(options.get(name) or ()) != config.num_labels:
                options[name] = None
        network = CGRSeg(**{**options, "num_classes": config.num_labels})
        self.backbone, self.decode_head = network.backbone, network.decode_head
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        # The parts initialize themselves; what has a row per class does so here.
        if module is self.decode_head.conv_seg:
            self.decode_head.init_classifier()
        elif isinstance(module, torch.nn.Embedding):  # positions of the classes in the SSA head
            torch.nn.init.normal_(module.weight)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Logits, and the published loss where labels are given.

        Args:
            pixel_values: (N, 3, H, W) float, from :class:`CGRSegImageProcessor`; H and W
                multiples of 32.
            labels: (N, H, W) int64, class ids, 255 where ignored.
            return_dict: False: a tuple instead of the named output; None: as the config says.

        Returns:
            `logits` (N, K, H / 8, W / 8), and `loss`: cross-entropy averaged over all pixels.
        """
        logits = self.decode_head(self.backbone(pixel_values)[1:])[0]
        loss = None if labels is None else upsample_cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class CGRSegImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """From images to the network's input, and from logits to label maps.

    Args:
        preprocessing: test settings of the network (`test` of a config) by name; None: those
            published for ADE20K.  A single forward pass serves one plain view of the whole image:
            settings with windows, scales or mirroring are refused.

    Raises:
        WeightsError: settings that this version does not have.
        DataError: settings of several views.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, preprocessing: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.preprocessing = dict(preprocessing) if preprocessing is not None else None
        if not is_plain(self.settings):
            raise DataError(
                "preprocessor_config.json",
                found="test settings of several views (windows, scales or mirroring)",
                expected="one plain view of the whole image: one forward pass of transformers",
                remedy="predict with cgrseg.Predictor.from_pretrained, or set mode whole, "
                "ratios [1] and flip false",
            )

    @property
    def settings(self) -> TestConfig:
        """The test settings."""
        return stored_test_settings(self.preprocessing, "preprocessor_config.json")

    def to_dict(self) -> dict[str, Any]:
        """Content of `preprocessor_config.json`."""
        # Without the name of the class: AutoImageProcessor would look for it before it opens
        # config.json, whose class registers this one.
        return {"preprocessing": self.preprocessing}

    def preprocess(self, images: Any, return_tensors: Any = None, **_: Any) -> BatchFeature:
        """Resize, normalize and pad.

        Args:
            images: an image of any kind that :class:`cgrseg.Predictor` takes, or a list of them.
            return_tensors: "pt" or "np": one batch; None: a list of arrays.

        Returns:
            `pixel_values`: float32 (N, 3, H, W), H and W multiples of 32.

        Raises:
            DataError: an image that cannot be used, or a batch of images of different sizes.
        """
        several = images if isinstance(images, (list, tuple)) else [images]
        settings = self.settings
        inputs = [
            NetworkInput.of(as_image(image, settings), settings).array[0] for image in several
        ]
        sizes = sorted({f"{array.shape[1]}x{array.shape[2]}" for array in inputs})
        if return_tensors is not None and len(sizes) > 1:
            raise DataError(
                "images",
                found=f"images that are resized to {' and '.join(sizes)}",
                expected="one size per batch: padding them alike would change their labels",
                remedy="process images of different sizes one by one",
            )
        return BatchFeature(data={"pixel_values": inputs}, tensor_type=return_tensors)

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Label maps at the images' own sizes, equal to those of :class:`cgrseg.Predictor`.

        Args:
            outputs: of the network, with `logits` (N, K, h, w).
            target_sizes: height and width of each image as it was given to :meth:`preprocess`;
                None: label maps (h, w) at the size of the logits.

        Returns:
            int64 (height, width) for each image.

        Raises:
            DataError: another number of sizes than images, or logits that are not finite.
        """
        logits = outputs.logits.detach().float()
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise DataError(
                "target_sizes",
                found=f"{len(target_sizes)} sizes for {len(logits)} images",
                expected="height and width of each image",
                remedy="pass as many target_sizes as logits",
            )
        transform = EvalTransform(self.settings)
        padded = (logits.shape[2] * 8, logits.shape[3] * 8)
        found = []
        for one, target in zip(logits, target_sizes, strict=True):
            size = (int(target[0]), int(target[1]))
            on_cpu = one.device.type == "cpu"
            view = WholeView(one.numpy() if on_cpu else one, padded, transform.size_for(size), size)
            result = decode([view], size) if on_cpu else decode_on_device([view], size, one.device)
            found.append(torch.from_numpy(result.labels).long())
        return found


modeling_auto.AutoModelForSemanticSegmentation.register(
    CGRSegConfig, CGRSegForSemanticSegmentation, exist_ok=True
)
# A pipeline compares the name of the class with this table.
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[CGRSegConfig.model_type] = (
    CGRSegForSemanticSegmentation.__name__
)
AutoImageProcessor.register(
    CGRSegConfig, slow_image_processor_class=CGRSegImageProcessor, exist_ok=True
)
