"""Any known format: recognized by its files, and converted by its own module."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from cgrseg.data.convert.custom_format import SourceFormat
from cgrseg.data.convert.format import Annotations, Format, Task
from cgrseg.errors import DataError


@dataclass
class Auto(SourceFormat):
    """Any of the other formats, recognized by its files.

    Example:
      cgrseg data convert auto export data/mine --background other
    """

    name = "auto"

    def resolved(self) -> Format:
        """The only format that recognizes the source, with the options given.

        Raises:
            DataError: no format recognizes it, or several do, or the one has no such option.
        """
        from cgrseg.data.convert.formats import formats, recognize

        if not self.source.exists():
            raise DataError(
                self.source,
                found="no such file or folder",
                expected="annotations to convert",
                remedy="check the path; a hub id: cgrseg data convert huggingface",
            )
        reasons = recognize(self.source)
        if len(reasons) != 1:
            signs = "; ".join(f"{name} (by {reason})" for name, reason in reasons.items())
            raise DataError(
                self.source,
                found=f"signs of {signs}" if signs else "no known format",
                expected="one of " + ", ".join(name for name in formats() if name != self.name),
                remedy="choose the format: cgrseg data convert FORMAT"
                if reasons
                else "check that this is the exported folder or file itself; color masks: "
                "cgrseg data convert rgb; masks of ids need no conversion",
            )
        ((name, reason),) = reasons.items()
        kind = formats()[name]
        accepted = {each.name for each in dataclasses.fields(kind)}
        given = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if getattr(self, each.name) != each.default
        }
        if strange := sorted(given.keys() - accepted):
            raise DataError(
                self.source,
                found=f"the format {name} (by {reason}), which has no option {strange[0]}",
                expected=f"options of cgrseg data convert {name}",
                remedy=f"leave it out, or see cgrseg data convert {name} --help",
            )
        if name == "coco":  # its images lie beside the file where nothing else is said
            given.setdefault("images", self.source.parent)
        found = kind(**given)
        found.recognized_by = reason  # type: ignore[misc]
        return found

    def read(self) -> Annotations:
        """Not used: the format that was recognized reads."""
        return self.resolved().read()

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """Not used: the format that was recognized draws."""
        raise NotImplementedError
