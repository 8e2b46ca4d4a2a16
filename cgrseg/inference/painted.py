"""Which painted clips of a folder are kept: the record beside each, `<clip>.json`.

It says what painted the clip (weights, precision, settings, opacity), the state of the source
before it was opened, and the state of the painted file (:mod:`cgrseg.provenance`).  It is written
after the clip: a painted file that replaced another one before the process was killed has another
state than the record, and is painted again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cgrseg.errors import DataError, option
from cgrseg.files import write_json
from cgrseg.inference.folder import made_by
from cgrseg.inference.predictor import Predictor
from cgrseg.input_files import read_input_text
from cgrseg.provenance import file_state, path_digest

Found = Literal["kept", "unrecorded", "paint"]


class PaintRecord:
    """What a clip is painted with, taken before it is opened.

    Args:
        predictor: labels the frames.
        checkpoint: where the network comes from.
        opacity: of the labels.
        source: the clip.
        target: the painted one.
    """

    def __init__(
        self,
        predictor: Predictor,
        checkpoint: str | Path | None,
        opacity: float,
        source: Path,
        target: Path,
    ) -> None:
        self.source, self.target = source, target
        self.path = target.with_name(f"{target.name}.json")
        made = {**made_by(predictor, checkpoint), "opacity": opacity}
        self._made_by = {"palette": [list(color) for color in predictor.palette], **made}
        self._source = file_state(source)

    def look(self) -> Found:
        """What is to be done with the target.

        Returns:
            "kept": it is this clip, painted like this; "unrecorded": a file that no record
            describes, which is never replaced unasked; "paint": there is none, or the clip was
            replaced since.

        Raises:
            DataError: it was painted by another network or with other settings, or is another
                clip's.
        """
        if not self.target.is_file():
            return "paint"
        before = self._read()
        if before.get("painting"):
            return "paint"
        if before.get("result") != file_state(self.target):
            return "unrecorded"
        others = [key for key, value in self._made_by.items() if before.get(key) != value]
        if others:
            raise self._refusal(f"a clip painted with other {', '.join(others)}")
        if before.get("source") == self._source:
            return "kept"
        if before.get("place") != path_digest(self.source):
            raise self._refusal(f"another clip than {self.source}, painted under the same name")
        return "paint"

    @contextlib.contextmanager
    def painting(self) -> Iterator[None]:
        """Around the painting: a target that a killed process leaves is not kept.

        On an error, the target is what it was before, and so is the record.
        """
        before = self._read()
        write_json(self.path, {**before, "painting": True})
        try:
            yield
        except BaseException:
            if before:
                write_json(self.path, before)
            else:
                self.path.unlink(missing_ok=True)
            raise
        sources = {"source": self._source, "place": path_digest(self.source)}
        write_json(self.path, {**self._made_by, **sources, "result": file_state(self.target)})

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(read_input_text(self.path))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _refusal(self, found: str) -> DataError:
        return DataError(
            self.target,
            found=f"{found} (see {self.path.name})",
            expected="a free name, or this clip painted in the same way",
            remedy=f"choose another folder, or replace it with {option('--overwrite')}",
        )
