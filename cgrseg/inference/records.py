"""Records of what made a result, so that a repeated command keeps only its own results.

- `prediction.json` in a folder of label maps states what made them, and every label file holds a
  note with a digest of it and of the image's bytes as they were decoded.  While it states
  `overwriting`, an overwrite was stopped half way: every map without the right note is replaced.
- `<video>.json` beside a painted video states what painted it, the state of the source before it
  was opened, and the state of the painted file.  It is written after the video: a painted file
  that replaced another one before the process was killed has another state than its record, and
  is painted again.

:mod:`cgrseg.provenance` explains digests and states.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cgrseg.addresses import Address
from cgrseg.config.schema import TestConfig
from cgrseg.data.channels import pixels_digest
from cgrseg.data.label_files import label_note
from cgrseg.errors import DataError, option
from cgrseg.files import write_json
from cgrseg.inference.prediction import Color, Prediction
from cgrseg.inference.predictor import Predictor
from cgrseg.input_files import open_input, read_input_text
from cgrseg.precision import PrecisionChoice
from cgrseg.provenance import file_state, settings_digest

RECORD = "prediction.json"
PARTS = ("labels", "overlays", "confidence")
"""Subfolders of a folder of results."""


@dataclass(frozen=True)
class Maker:
    """What a predictor is, in plain types, as a worker process sends it.

    Attributes:
        made: what decides its label maps, see :func:`made_by`.
        reasons: reasons of what was chosen.
        palette: RGB 0..255 per class.
        test: its test settings.
    """

    made: dict[str, Any]
    reasons: dict[str, Any]
    palette: tuple[Color, ...]
    test: TestConfig

    @classmethod
    def of(cls, predictor: Predictor, checkpoint: str | Path | None) -> Maker:
        """Describe a predictor and the source of its network."""
        made = made_by(predictor, checkpoint)
        return cls(made, _reasons(predictor), predictor.palette, predictor.test)


class FolderRecord:
    """What makes the label maps of a folder, written to `prediction.json`.

    Args:
        maker: labels the images.
        checkpoint: source of the network.
        folder: folder of the results.
        overlays: look of the overlays; None: none are written.
        overwrite: replace results of another kind.

    Raises:
        DataError: the folder holds other results, and `overwrite` is not set.
    """

    def __init__(
        self,
        maker: Maker,
        checkpoint: str | Path | None,
        folder: Path,
        overlays: dict[str, Any] | None,
        overwrite: bool,
    ) -> None:
        made = maker.made
        self._test = maker.test
        self._maps = _maps_digest(made)
        self._accepted = {self._maps}
        if made.get("auto"):  # goes on with any form of the network
            named = {k: v for k, v in made.items() if k != "auto"}
            self._accepted |= {_maps_digest({**named, "compile": each}) for each in (False, True)}
        self._look = "-" if overlays is None else settings_digest(overlays)
        self._path = folder / RECORD
        # Listed before the record is read: every process writes the record before its first label.
        files = [p for part in PARTS for p in sorted((folder / part).rglob("*")) if p.is_file()]
        known = self._path.is_file()
        if files and not known and not overwrite:
            raise DataError(
                folder,
                found=f"files that are not known to be results ({files[0]})",
                expected=f"an empty folder, or one with results and their {RECORD}",
                remedy=f"choose another folder; {option('--overwrite')} replaces files of the "
                "same names",
            )
        self.overwriting = overwrite and bool(files)
        name = None if checkpoint is None else str(checkpoint)
        self._content = {
            "checkpoint": name,
            **made,
            **maker.reasons,
            "overlays": overlays,
        }
        if known and not overwrite:
            before = {"compile": False, **read_record(self._path)}
            self.overwriting = bool(before.get("overwriting"))
            drawn = before.get("overlays")
            others = _differences(made, before)
            # Overlays can be added to label maps; two looks of them are not mixed.
            if overlays is not None and drawn not in (None, overlays):
                others.append("overlays")
            if others:
                raise DataError(
                    folder,
                    found=f"results of other {', '.join(others)} (see {RECORD} in it)",
                    expected="an empty folder, or one with results of the same kind to go on with",
                    remedy="choose another folder, or replace these results with "
                    f"{option('--overwrite')}",
                )
            if overlays is None or drawn == overlays:
                self._content["overlays"] = drawn
                if before.get("auto") == made.get("auto"):
                    return
        marked = {"overwriting": True} if self.overwriting else {}
        write_json(self._path, self._content | marked)

    def finish(self, form: str = "", *, overwritten: bool) -> None:
        """Record how this process ended.

        Args:
            form: forms of the network that ran, from the backend's `choice`.
            overwritten: whether an overwriting is complete.
        """
        if form:
            self._content["form"] = form
        complete = self.overwriting and overwritten
        if form or complete:
            marked = {"overwriting": True} if self.overwriting and not complete else {}
            write_json(self._path, self._content | marked)

    def note(self, found: Prediction, image: Path | Address, scores: str = "") -> str:
        """Note for the label file of an image; `scores`: see :func:`scores_in`."""
        return f"{self._maps} {self._look} {found.digest} {_path_digest(image)} {scores}".rstrip()

    def keeps(self, labels: Path, image: Path | Address, *, scored: bool = False) -> bool:
        """Whether a label file is what this network makes of the image as it is now.

        A file without a note is kept, since somebody may have retouched it, unless an overwriting
        is under way.  An image that was replaced is predicted again, and with `scored` one whose
        file has no scores.

        Raises:
            DataError: the map of an image in another place with other content.
        """
        note = label_note(labels)
        if note is None:
            return not self.overwriting
        # Notes of earlier versions lack the image's digest or its place.
        maps, look, digest, place = [*note.split(" "), "", "", ""][:4]
        now = pixels_digest(image, self._test)
        if now is None:
            return False  # its reader reports what is wrong
        if digest == now and scored and scores_in(note) is None:
            return False
        if digest == now:
            return maps in self._accepted and self._look in ("-", look)
        if not digest or self.overwriting or place == _path_digest(image):
            return False
        raise DataError(
            labels,
            found=f"the map of another image than {image}, under the same name",
            expected="results of the same images to go on with",
            remedy=f"choose another folder, or replace these results with {option('--overwrite')}",
        )


def is_made_by(predictor: Predictor, checkpoint: str | Path | None, folder: Path) -> bool:
    """Whether a folder of label maps is what this predictor makes, with nothing else in it."""
    before = read_record(folder / RECORD)
    return not before.get("overwriting") and not _differences(
        made_by(predictor, checkpoint), {"compile": False, **before}
    )


def scores_in(note: str | None) -> str | None:
    """Scores of regions in a note of :meth:`FolderRecord.note`; None: there are none."""
    words = [] if note is None else note.split(" ")
    return words[4] if len(words) > 4 else None


class VideoRecord:
    """What paints a video, to be created before the video is opened.

    Args:
        predictor: labels the frames.
        checkpoint: source of the network.
        opacity: opacity of the labels.
        source: the video.
        target: the painted video.
    """

    def __init__(
        self,
        predictor: Predictor,
        checkpoint: str | Path | None,
        opacity: float,
        source: Path,
        target: Path,
    ) -> None:
        self._target = target
        self._path = target.with_name(f"{target.name}.json")
        palette = [list(color) for color in predictor.palette]
        self._made = {
            "palette": palette,
            **made_by(predictor, checkpoint),
            "opacity": opacity,
        }
        self._backend = predictor.backend
        self._reasons = _reasons(predictor)
        self._source = source
        self._state = file_state(source)

    def find(self) -> Literal["missing", "kept", "unrecorded"]:
        """State of the target.

        Returns:
            "missing": to be painted, since there is no target or the video was replaced since;
            "kept": this video, painted in this way; "unrecorded": a file without a valid record,
            which must not be replaced unasked.

        Raises:
            DataError: painted by another network or with other settings, or another video.
        """
        before = read_record(self._path)
        if not self._target.is_file() or before.get("painting"):
            return "missing"
        if before.get("result") != file_state(self._target):
            return "unrecorded"
        if others := _differences(self._made, before):
            raise self._refusal(f"a video painted with other {', '.join(others)}")
        if before.get("source") == self._state:
            return "kept"
        if before.get("place") != _path_digest(self._source):
            raise self._refusal(f"another video than {self._source}, painted under the same name")
        return "missing"

    @contextlib.contextmanager
    def painting(self) -> Iterator[None]:
        """Context of the painting: the target that a killed process leaves will not be kept.

        On an error, target and record are what they were before.
        """
        before = read_record(self._path)
        write_json(self._path, {**before, "painting": True})
        try:
            yield
        except BaseException:
            if before:
                write_json(self._path, before)
            else:
                self._path.unlink(missing_ok=True)
            raise
        sources = {"source": self._state, "place": _path_digest(self._source)}
        form = {"form": self._backend.choice} if self._backend.choice else {}
        made = {**self._made, **self._reasons, **form, **sources}
        write_json(self._path, {**made, "result": file_state(self._target)})

    def _refusal(self, found: str) -> DataError:
        return DataError(
            self._target,
            found=f"{found} (see {self._path.name})",
            expected="a free name, or this video painted in the same way",
            remedy=f"choose another folder, or replace it with {option('--overwrite')}",
        )


def made_by(predictor: Predictor, checkpoint: str | Path | None) -> dict[str, Any]:
    """What decides a predictor's label maps, in plain types."""
    return {
        **({"auto": True} if predictor.backend.chooses else {}),
        "weights": _weights(predictor, checkpoint),
        "precision": predictor.backend.precision,
        "compile": predictor.backend.compiled,
        "classes": list(predictor.classes),
        "test": predictor.test.model_dump(mode="json"),
    }


def _reasons(predictor: Predictor) -> dict[str, Any]:
    """Reasons of what was chosen, which do not decide whether results are of one kind."""
    backend = predictor.backend
    return PrecisionChoice(backend.precision, backend.precision_reason).record()


def _weights(predictor: Predictor, checkpoint: str | Path | None) -> str | None:
    """Digest of the network or its file, else the file's name."""
    known = predictor.backend.digest()
    if known is not None or checkpoint is None:
        return known
    files = sorted(p for p in [Path(checkpoint), *Path(checkpoint).rglob("*")] if p.is_file())
    if not files:
        return str(checkpoint)
    digest = hashlib.sha256()
    for file in files:
        with open_input(file) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _maps_digest(made: dict[str, Any]) -> str:
    # Without `compile` where it is false: the digest must equal those from before the field.
    return settings_digest({key: v for key, v in made.items() if key != "compile" or v})


def _differences(made: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Names of what differs; with `auto` any form of the network may go on."""
    if made.get("auto"):
        made = {key: value for key, value in made.items() if key not in ("auto", "compile")}
    elif before.get("auto"):
        before = {**before, "compile": "auto"}
    return [key for key, value in made.items() if before.get(key) != value]


def read_record(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        found = json.loads(read_input_text(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path_digest(path: Path | str | Address) -> str:
    """Digest of the path of a file, 16 hexadecimal digits: results do not contain user folders."""
    place = path.url if isinstance(path, Address) else os.path.realpath(path)
    return hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()
