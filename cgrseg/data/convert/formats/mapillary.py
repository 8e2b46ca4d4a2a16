"""Mapillary Vistas 1.2 and 2.0 (https://www.mapillary.com/dataset/vistas).

`{training,validation}/v1.2/labels/x.png` (or `v2.0`) has the index of the class in
`config_v1.2.json`.  Classes that are not evaluated there are ignored.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from cgrseg.data.convert.color_masks import Color
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, Option, reading
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source, plain_split
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError, option
from cgrseg.input_files import read_input_text

Version = Literal["v1.2", "v2.0"]


@dataclass
class Mapillary(MaskFormat):
    """Mapillary Vistas 1.2 and 2.0.

    Example:
      cgrseg data convert mapillary mapillary-vistas data/vistas --version v1.2
    """

    name = "mapillary"

    _: KW_ONLY
    version: Annotated[Version | None, Option("Version of the labels. Default: the newest.")] = None

    @classmethod
    def recognize(cls, source: Path) -> str:
        """A list of classes and a folder of labels of one version."""
        return next((f"config_{v}.json" for v in ("v2.0", "v1.2") if _folders(source, v)), "")

    def find(self) -> Source:
        """Classes are the evaluated labels of the configuration, in its order."""
        versions = [self.version] if self.version else ["v2.0", "v1.2"]
        version = next((each for each in versions if _folders(self.source, each)), None)
        if version is None:
            raise DataError(
                self.source,
                found=f"no */{'|'.join(versions)}/labels beside config_{versions[0]}.json",
                expected="training and validation with images and labels, and the configuration",
                remedy="name the folder that holds config_v1.2.json or config_v2.0.json, or "
                f"another version ({option('--version')})",
            )
        path = self.source / f"config_{version}.json"
        labels = _read_labels(path)
        names = [each["readable"] for each in labels]
        codes = {k: names[k] if each["evaluate"] else None for k, each in enumerate(labels)}
        images: list[LabeledImage | Failure] = []
        for folder in _folders(self.source, version):
            split = folder.parents[1]
            images += [
                LabeledImage(
                    mask,
                    f"{mask.stem}.jpg",
                    split=plain_split(split.name),
                    folders=[split / "images"],
                    mask=mask,
                    codes=codes,
                )
                for mask in sorted(folder.glob("*.png"))
            ]
        colors: dict[str, Color] = {
            name: each["color"] for name, each in zip(names, labels, strict=True)
        }
        return Source(images, [name for name in codes.values() if name], colors=colors)

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """Indices of classes."""
        return read_label(mask)


def _folders(source: Path, version: str) -> list[Path]:
    if not (source / f"config_{version}.json").is_file():
        return []
    return sorted(source.glob(f"*/{version}/labels"))


def _read_labels(path: Path) -> list[dict[str, Any]]:
    with reading(
        path,
        expected="labels, each with readable, color and evaluate",
        remedy="unpack the dataset again",
    ):
        labels = json.loads(read_input_text(path, "utf-8-sig"))["labels"]
        for k, each in enumerate(labels):
            each["readable"] = written_name(each["readable"], f"{path}, label {k}")
            red, green, blue = (int(value) for value in each["color"])
            if not all(0 <= value <= 255 for value in (red, green, blue)):
                raise ValueError(f"the color {each['color']}")
            each["color"] = red, green, blue
            each["evaluate"] = bool(each["evaluate"])
        return list(labels)
