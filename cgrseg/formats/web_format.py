"""A page that runs the network in the browser: a folder for any static web server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cgrseg.config.schema import TestConfig
from cgrseg.config.settings import stored_test_settings
from cgrseg.data.geometry import round_up
from cgrseg.data.guess import names_and_colors
from cgrseg.errors import ConfigError
from cgrseg.formats.base import Run
from cgrseg.formats.description import Description, file_beside
from cgrseg.formats.onnx_format import OnnxFormat
from cgrseg.formats.onnxruntime_web import (
    FILES,
    LICENSES,
    copy_runtime,
    find_licenses,
    locate_package,
)
from cgrseg.page import (
    MAX_CLASSES,
    MAX_FRAMES,
    MAX_INPUT_PIXELS,
    MAX_PIXELS,
    class_table,
    page_files,
)
from cgrseg.precision import Precision
from cgrseg.variants import NETWORK_STRIDE

_MODEL = "network.onnx"
# WebAssembly needs 'wasm-unsafe-eval'; worker.js alone may be started as a worker.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "style-src 'self'; img-src 'self'; media-src blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types worker default"
)
# Features of WebGPU that a network needs; None: it runs on the CPU only.
_GPU_FEATURES: dict[str, list[str] | None] = {"fp32": [], "fp16": ["shader-f16"], "int8": None}
_CHARSET = '<meta charset="utf-8">'
# Netlify and Cloudflare Pages read this file; docs/deployment.md says what other servers need.
# The policy is a header too: the one in the page does not bind its worker.
_HEADERS = f"""/*
  Content-Security-Policy: {_POLICY}
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
  X-Content-Type-Options: nosniff
"""


class WebFormat(OnnxFormat):
    """A page with an ONNX file, run by ONNX Runtime Web; checked in ONNX Runtime on the CPU."""

    suffix = ".html"
    main_file = "index.html"
    inputs = ("normalised",)
    outputs = ("logits",)
    one_image = True
    default_batch = 1
    stem_ending = "-web"

    def prepare(self, description: Description) -> None:
        """See :class:`ExportFormat`; the runtime for browsers is downloaded here.

        Raises:
            ConfigError: test settings that the page cannot do, other channels than RGB, or too many
                classes.
        """
        test = stored_test_settings(description.test, description.source)
        if test.mode != "whole" or list(test.ratios) != [1.0] or test.flip:
            raise ConfigError(
                "test.mode, test.ratios, test.flip",
                found=f"{test.mode}, {list(test.ratios)}, {str(test.flip).lower()}",
                expected="one plain view of the whole image, as the page labels it",
                remedy="give test.mode=whole test.ratios=[1] test.flip=false",
            )
        if test.image_channels is not None:
            raise ConfigError(
                "export as web",
                found=f"a network that takes {', '.join(test.image_channels.names or [])}",
                expected="one for 8-bit RGB, which is all that a browser decodes",
                remedy="serve it with cgrseg web, or choose another format",
            )
        if description.num_classes > MAX_CLASSES:
            raise ConfigError(
                "export as web",
                found=f"a network of {description.num_classes} classes",
                expected=f"at most {MAX_CLASSES}, which a label map of the page can hold",
                remedy="choose another format",
            )
        find_licenses()
        locate_package()

    def files(self, path: Path) -> tuple[Path, ...]:
        """See :class:`ExportFormat`."""
        names = (*FILES, *LICENSES.values(), _MODEL, "network.json", "_headers")
        return tuple(path.with_name(name) for name in (*names, *self._page()))

    def save(self, model: Any, description: Description, path: Path) -> None:
        """See :class:`QuantizableFormat`: the network, then the page around it."""
        network = path.with_name(_MODEL)
        super().save(model, description, network)
        about = _about(description, network.stat().st_size)
        contents = {"network.json": json.dumps(about).encode(), "_headers": _HEADERS.encode()}
        for name, content in {**contents, **self._page()}.items():
            path.with_name(name).write_bytes(content)
        copy_runtime(path.parent)

    def open(self, path: Path, precision: Precision = "fp32") -> tuple[Description, Run]:
        """See :class:`ExportFormat`; the network beside the page is opened."""
        network = file_beside(
            path.with_name(_MODEL),
            path,
            expected="the whole folder of the page",
            remedy="copy the whole folder",
        )
        return super().open(network, precision)

    @staticmethod
    def _page() -> dict[str, bytes]:
        page = page_files("labels_in_browser.js", "worker.js", "segmenting.js")
        policy = f'{_CHARSET}\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        index = page["index.html"].replace(_CHARSET.encode(), policy.encode())
        return {**page, "index.html": index}


def _about(description: Description, size: int) -> dict[str, Any]:
    """What the page has to know about the network: `network.json`."""
    test = TestConfig(**(description.test or {}))  # prepare() has checked them
    classes, palette = names_and_colors(
        description.num_classes, description.classes, description.palette
    )
    sizes = [*(description.sizes or []), (test.scale[0], test.scale[1])]
    largest = max(round_up(a, NETWORK_STRIDE) * round_up(b, NETWORK_STRIDE) for a, b in sizes)
    return {
        "name": Path(description.source).stem,
        "bytes": size,
        "gpu_features": _GPU_FEATURES[description.precision],
        "classes": class_table(classes, palette),
        "settings": {
            "resize": test.resize,
            "scale": list(test.scale),
            "divisor": test.divisor,
            "sizes": description.sizes,
            "mean": description.mean,
            "std": description.std,
        },
        "limits": {
            "pixels": MAX_PIXELS,
            "input_pixels": max(MAX_INPUT_PIXELS, largest),
            "frames": MAX_FRAMES,
        },
    }


FORMAT = WebFormat()
