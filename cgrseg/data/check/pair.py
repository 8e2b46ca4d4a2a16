"""Check one image and its label; runs in worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from cgrseg.config.schema import TestConfig
from cgrseg.data.channels import as_picture, mixed_types, read_pixels, types_of
from cgrseg.data.image_files import FULL_BITS, open_with_pillow, used_bits
from cgrseg.data.label_files import read_label
from cgrseg.data.pairs import Pair
from cgrseg.data.scenes import place_of
from cgrseg.datasets.findings import Finding, finding_from_error
from cgrseg.datasets.label_rules import LabelRule
from cgrseg.errors import DataError
from cgrseg.input_files import read_input

THUMB_SIDE = 32
_DEEP = "more than 8 bits a channel, of which the upper 8 are used"
_EMPTY_BITS = 2  # an image with this many unused bits or more looks too dark to be meant
_MANY_IDS = 16  # more forbidden ids than this are no class ids
_ORIENTATION = 0x0112  # EXIF tag; from 5 on the image lies on its side
_STEP = 4  # rows and columns between the pixels that tell where a class lies
_PRESENT = 0.005  # share of an image below which a class's position says little


@dataclass(frozen=True)
class Job:
    """A pair to check.

    Attributes:
        split: name of its split.
        pair: image and label.
        rule: encoding of the label.
        decode_image: read the whole image; otherwise only its header.
        test: how images are read.
    """

    split: str
    pair: Pair
    rule: LabelRule
    decode_image: bool
    test: TestConfig = field(default_factory=TestConfig)


@dataclass
class Facts:
    """Content of one pair.

    Attributes:
        split: name of its split.
        image: path of the image.
        size: height, width of the image as shown; None: unreadable.
        digest: of the image file's bytes; empty where it was not decoded.
        thumb: 32 x 32 gray bytes; empty where the image was not decoded.
        counts: raw id to pixels.
        pixels: training id to pixels, for the ids that the rule allows.
        ignored: number of ignored pixels.
        centers: raw id to mean row, 0 (top) to 1 (bottom), where it covers enough.
        bits: bits that the largest value of a 16-bit image needs; None: it has 8 bits, or was
            not decoded.
        types: types of the stored values of each channel; empty: 8-bit RGB, or not decoded.
        system: coordinate system of a georeferenced image; empty: it has none, or was not decoded.
        bounds: its left, bottom, right and top.
        findings: what is wrong with the two files.
    """

    split: str
    image: str
    size: tuple[int, int] | None = None
    digest: bytes = b""
    thumb: bytes = b""
    counts: dict[int, int] = field(default_factory=dict)
    pixels: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    centers: dict[int, float] = field(default_factory=dict)
    bits: int | None = None
    types: list[str] = field(default_factory=list)
    system: str = ""
    bounds: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    findings: list[Finding] = field(default_factory=list)


def inspect_pair(job: Job) -> Facts:
    """Check one pair; problems become findings, never exceptions."""
    facts = Facts(job.split, str(job.pair.image))
    try:
        _inspect_image(job, facts)
    except DataError as error:
        facts.findings.append(finding_from_error("image-unreadable", job.pair.image, error))
    label = job.pair.label
    if label is None:
        return facts
    try:
        raw = read_label(label)
    except DataError as error:
        facts.findings.append(finding_from_error(_why_no_label(label), label, error))
        return facts
    _inspect_label(raw, label, job.rule, facts)
    if facts.size is not None and facts.size != raw.shape:
        facts.findings.append(_size_mismatch(facts.size, raw.shape, job.pair))
    return facts


def _inspect_image(job: Job, facts: Facts) -> None:
    path, channels = job.pair.image, job.test.image_channels
    facts.size, odd = _read_header(path)
    if channels is not None:
        odd = ""
    if odd and not (odd == _DEEP and job.test.image_bits < FULL_BITS):
        remedy = "if what is dropped matters, convert the image yourself; else ignore this"
        if odd == _DEEP:
            fewer = "if the values use fewer than 16 bits, say how many: test.image_bits=12; "
            remedy = f"{fewer}{remedy}"
        message = f"{odd}; the network sees 8-bit RGB"
        facts.findings.append(Finding("warning", "image-depth", str(path), message, remedy))
    if not job.decode_image:
        return
    image = read_pixels(path, job.test)
    if channels is not None:
        facts.types = types_of(path, channels)
    facts.system, facts.bounds = place_of(path)
    if odd == _DEEP:
        facts.bits = used_bits(path)
    facts.size = (image.shape[0], image.shape[1])
    gray = cv2.cvtColor(as_picture(image, channels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA)
    facts.thumb = small.tobytes()
    facts.digest = hashlib.blake2b(read_input(path), digest_size=16).digest()


def _read_header(path: Path) -> tuple[tuple[int, int] | None, str]:
    """Height, width as shown, and what is unusual about the pixels.

    A file that Pillow does not know is left to the decoder: (None, '').
    """
    try:
        with open_with_pillow(path) as picture:
            size = (picture.height, picture.width)
            # Before the tags are read, which may load the pixels and forget how they are stored.
            tiles = [str(tile[-1]) for tile in getattr(picture, "tile", ())]
            deep = picture.mode.startswith(("I", "F")) or any(";16" in tile for tile in tiles)
            turn = picture.getexif().get(_ORIENTATION, 1)
            if isinstance(turn, int) and turn >= 5:
                size = size[::-1]
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                return size, "an alpha channel, which is dropped"
            return size, _DEEP if deep else ""
    except Exception:  # Pillow's parsers raise errors of any class; the decoder decides
        return None, ""


def judge_types(facts: Sequence[Facts]) -> list[Finding]:
    """An error for each image whose values have another type than those of the first one."""
    known = [item for item in facts if item.types]
    return [
        finding_from_error(
            "image-types",
            Path(item.image),
            mixed_types(Path(item.image), item.types, known[0].types, known[0].image),
        )
        for item in known
        if item.types != known[0].types
    ]


def judge_image_bits(facts: Sequence[Facts], image_bits: int) -> list[Finding]:
    """A warning where 16-bit images use other bits than `test.image_bits` says."""
    deep = [item for item in facts if item.bits is not None]
    if not deep:
        return []
    widest = max(deep, key=lambda item: item.bits or 0)
    needed = max(widest.bits or 0, 8)
    # Dark images leave the upper bits empty too, so a single empty bit is no proof.
    if needed == image_bits or (needed < image_bits and image_bits - needed < _EMPTY_BITS):
        return []
    highest = 2**needed - 1
    message = (
        f"no value of {len(deep)} 16-bit images is above {highest} ({needed} bits): read with "
        f"{image_bits} bits, the network gets 0 to {highest >> (image_bits - 8)} of 255"
    )
    if needed > image_bits:
        message = (
            f"values need {needed} bits, more than test.image_bits={image_bits}: they are cut off"
        )
    remedy = f"set test.image_bits={needed}; the checkpoint keeps it for predictions"
    return [Finding("warning", "image-bits", widest.image, message, remedy)]


def _inspect_label(raw: np.ndarray, path: Path, rule: LabelRule, facts: Facts) -> None:
    counts = _count_ids(raw)
    facts.counts = {int(k): int(counts[k]) for k in np.flatnonzero(counts)}
    for stored, count in facts.counts.items():
        new = rule.lookup[stored]
        if new == rule.ignore_index:
            facts.ignored += count if stored in rule.allowed else 0
        else:
            facts.pixels[new] = facts.pixels.get(new, 0) + count
    facts.centers = _mean_rows(raw)
    forbidden = [stored for stored in facts.counts if stored not in rule.allowed]
    if forbidden:
        code = "id-out-of-range"
        if any(set(forbidden) & hint.ids for hint in rule.hints):
            code = "sister-encoding"
        elif len(forbidden) > _MANY_IDS:
            code = "label-not-ids"
        shown = ", ".join(f"{k} ({counts[k] / raw.size:.2%})" for k in forbidden[:8])
        more = f" and {len(forbidden) - 8} more" if len(forbidden) > 8 else ""
        message = f"ids {shown}{more}; expected: {rule.meaning}"
        facts.findings.append(Finding("error", code, str(path), message, rule.advice(raw)))
    elif not facts.pixels:
        facts.findings.append(
            Finding(
                "warning",
                "nothing-labelled",
                str(path),
                f"every pixel is ignored (ids {list(facts.counts)})",
                "label the image or take it out: it teaches nothing",
            )
        )


def _count_ids(raw: np.ndarray) -> np.ndarray:
    """(256,) int64 pixels per id; OpenCV counts 10 times faster than NumPy, up to 2**24."""
    if raw.size > 2**24:
        return np.bincount(raw.ravel(), minlength=256)
    return cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def _mean_rows(raw: np.ndarray) -> dict[int, float]:
    """Id to mean row, 0 (top) to 1 (bottom), where it covers enough; every 16th pixel."""
    coarse = raw[::_STEP, ::_STEP]
    height, width = coarse.shape
    rows = np.repeat((np.arange(height) + 0.5) / height, width)
    counts = np.bincount(coarse.ravel(), minlength=256)
    sums = np.bincount(coarse.ravel(), weights=rows, minlength=256)
    large = np.flatnonzero(counts > _PRESENT * coarse.size)
    return {int(k): float(sums[k] / counts[k]) for k in large}


def _why_no_label(path: Path) -> str:
    """Code of the finding for a label that cannot be used."""
    try:
        with open_with_pillow(path) as picture:
            picture.load()
            return "label-depth" if picture.mode.startswith(("I", "F")) else "label-colour"
    except Exception:  # Pillow's parsers raise errors of any class
        return "label-unreadable"


def _size_mismatch(image: tuple[int, int], label: tuple[int, ...], pair: Pair) -> Finding:
    remedy = "make both from the same original; never resize one alone"
    if image == label[::-1]:
        remedy = (
            "one of the two is turned on its side: phones store the turn beside the pixels "
            "(EXIF), and labeling tools may ignore it; turn the label, or save the image upright"
        )
    return Finding(
        "error",
        "size-mismatch",
        str(pair.label),
        f"{label[1]}x{label[0]} pixels, its image {pair.image.name} is {image[1]}x{image[0]}",
        remedy,
    )
