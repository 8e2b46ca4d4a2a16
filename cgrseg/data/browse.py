"""A contact sheet: images with their labels over them, in one HTML file.

The quickest way to see whether labels mean what one believes.  The file needs no
server and no network: pictures are inside it, labels lie over their images as
separate pictures, so that one slider fades all of them.  With `augmented`, it shows
the samples of the first training iterations, exactly as the network gets them.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cgrseg.config.schema import Config
from cgrseg.data.catalogue import DatasetSpec, find_pairs, resolve_spec
from cgrseg.data.colour import MEAN, STD
from cgrseg.data.dataset import TrainDataset, load_image, load_label
from cgrseg.data.sampling import StreamSampler
from cgrseg.errors import DataError, option
from cgrseg.files import atomic_write_text
from cgrseg.input_files import read_input
from cgrseg.locks import locking
from cgrseg.progress import Progress

_GENERATOR = "cgrseg data browse"
_CLEAR = 255  # palette index of the label picture that lets the image through
_HATCH = 254  # and of the lines over ignored pixels, where no class has it
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Card:
    """One picture of the sheet.

    Attributes:
        title: name of the image.
        caption: what is worth knowing about it.
        picture: JPEG bytes; empty where there is nothing to show.
        labels: PNG bytes of the same size, transparent where ignored.
        shares: class id to share of the labelled pixels, largest first.
        problem: why there is nothing to show.
    """

    title: str
    caption: str
    picture: bytes = b""
    labels: bytes = b""
    shares: dict[int, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Sheet:
    """What was written.

    Attributes:
        path: the HTML file.
        shown: number of pictures.
        problems: messages of those that could not be shown; they are in the sheet too.
    """

    path: Path
    shown: int
    problems: tuple[str, ...]


@locking(lambda given: Path(given["out"]).parent)
def write_sheet(
    config: Config,
    out: Path | str,
    *,
    split: str | None = None,
    count: int = 24,
    augmented: bool = False,
    class_name: str | None = None,
    width: int = 360,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Sheet:
    """Write a contact sheet.

    Args:
        config: the run whose data is shown.
        out: HTML file to write.
        split: which split; None: the training split.  Augmented samples are always of the
            training split.
        count: at most this many pictures, spread evenly over the split, or the first ones
            of training when augmented.
        augmented: show training samples after augmentation.
        class_name: only pictures in which this class occurs.
        width: of a picture in pixels; augmented samples keep their own size.
        overwrite: replace a file that is no contact sheet.
        progress: called with (done, total).

    Raises:
        ConfigError, DataError: the dataset cannot be used, or no class has that name.
        EnvironmentProblem: the file cannot be written.
    """
    target = Path(out)
    _refuse_other_files(target, overwrite)
    spec = resolve_spec(config.data)
    wanted = _class_id(spec, class_name)
    if augmented:
        split = config.data.train_split
        cards = _augmented_cards(config, spec, count if wanted is None else 50 * count)
    else:
        split = split or config.data.train_split
        cards = _plain_cards(config, spec, split, count if wanted is None else None, width)
    chosen: list[Card] = []
    for card in cards:
        if wanted is not None and wanted not in card.shares:
            continue
        chosen.append(card)
        if progress:
            progress(len(chosen), count)
        if len(chosen) == count:
            break
    if not chosen:
        raise DataError(
            f"split {split!r} of {config.data.root}",
            found=f"no picture with the class {class_name!r} among those looked at",
            expected="one at least",
            remedy="`cgrseg data check` counts how often each class occurs",
        )
    what = "training samples after augmentation" if augmented else f"images of {split!r}"
    atomic_write_text(target, _page(spec, config, f"{len(chosen)} {what}", chosen))
    return Sheet(target, len(chosen), tuple(card.problem for card in chosen if card.problem))


def _refuse_other_files(target: Path, overwrite: bool) -> None:
    if overwrite or not target.exists():
        return
    if target.is_file() and _GENERATOR.encode() in read_input(target)[:2000]:
        return
    raise DataError(
        target,
        found="something else than a contact sheet is there",
        expected="a new file, or an earlier contact sheet",
        remedy=f"choose another name, or replace it with {option('--overwrite')}",
    )


def _class_id(spec: DatasetSpec, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in spec.classes:
        raise DataError(
            "--class",
            found=f"{name!r} is no class of {spec.title}",
            expected=f"one of {', '.join(spec.classes)}",
            remedy="correct the name",
        )
    return spec.classes.index(name)


def _plain_cards(
    config: Config, spec: DatasetSpec, split: str, count: int | None, width: int
) -> Iterator[Card]:
    """Images spread over a split; all of them in a spread order when `count` is None."""
    pairs = find_pairs(spec, config.data.root, split)
    number = min(len(pairs), count or len(pairs))
    order = np.linspace(0, len(pairs) - 1, number).round().astype(int)
    if count is None:
        # Far apart first, so that the pictures of a class are not all of one scene.
        order = np.random.default_rng(0).permutation(order)
    for index in order:
        pair = pairs[int(index)]
        try:
            labels = load_label(spec, pair)
            image = load_image(pair, labels, bits=config.test.image_bits)
        except DataError as error:
            yield Card(pair.stem, "", problem=str(error))
            continue
        caption = f"{image.shape[1]}x{image.shape[0]} pixels"
        scale = min(1.0, width / image.shape[1])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small_labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        yield _card(spec, pair.stem, caption, small, small_labels, labels)


def _augmented_cards(config: Config, spec: DatasetSpec, count: int) -> Iterator[Card]:
    """The first samples of the training stream of one process."""
    dataset = TrainDataset.from_config(config)
    stream = StreamSampler(len(dataset), config.train.seed, config.train.batch_size)
    for position, index in itertools.islice(stream, count):
        stem = dataset.pairs[index].stem
        try:
            sample = dataset[position, index]
        except DataError as error:
            yield Card(stem, f"sample {position}", problem=str(error))
            continue
        pixels = sample["image"].numpy().transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)
        image = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
        labels = sample["label"].numpy().astype(np.uint8)
        iteration = position // config.train.batch_size + 1
        caption = f"sample {position}, iteration {iteration}"
        yield _card(spec, stem, caption, image, labels, labels)


def _card(
    spec: DatasetSpec,
    title: str,
    caption: str,
    image: np.ndarray,
    labels: np.ndarray,
    full_labels: np.ndarray,
) -> Card:
    encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )[1]
    counts = np.bincount(full_labels.ravel(), minlength=256)
    ignored = int(counts[spec.ignore_index])
    counts = counts[: spec.num_classes]
    labelled = max(int(counts.sum()), 1)
    shares = {
        int(k): float(counts[k] / labelled) for k in np.argsort(-counts, kind="stable") if counts[k]
    }
    if ignored:
        caption += f", {ignored / full_labels.size:.1%} ignored"
    return Card(title, caption, encoded.tobytes(), label_picture(spec, labels), shares)


def label_picture(spec: DatasetSpec, labels: np.ndarray) -> bytes:
    """A PNG of the classes' colours; ignored pixels are transparent with thin lines.

    Args:
        spec: the dataset.
        labels: (H, W) uint8 training ids.
    """
    indices = labels.copy()
    ignored = labels == spec.ignore_index
    indices[ignored] = _CLEAR
    if spec.num_classes <= _HATCH:
        rows, columns = np.indices(labels.shape)
        indices[ignored & ((rows + columns) % 8 == 0)] = _HATCH
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: spec.num_classes] = np.asarray(spec.palette, dtype=np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(colours.tobytes())
    stream = io.BytesIO()
    alpha = bytes([255] * _CLEAR + [0])
    picture.save(stream, format="PNG", transparency=alpha, optimize=True)
    return stream.getvalue()


def _page(spec: DatasetSpec, config: Config, what: str, cards: Sequence[Card]) -> str:
    counts = {k: sum(k in card.shares for card in cards) for k in range(spec.num_classes)}
    present = sorted((k for k in counts if counts[k]), key=lambda k: (-counts[k], k))
    options = "".join(
        f'<option value="{k}">{_text(spec.classes[k])} ({counts[k]})</option>' for k in present
    )
    title = f"{spec.title}: {what}"
    return _TEMPLATE.format(
        generator=_GENERATOR,
        title=_text(title),
        root=_text(config.data.root),
        style=_STYLE,
        options=options,
        cards="\n".join(_card_html(spec, card) for card in cards),
        script=_SCRIPT,
    )


def _card_html(spec: DatasetSpec, card: Card) -> str:
    head = f"<figcaption><b>{_text(card.title)}</b> <span>{_text(card.caption)}</span>"
    if card.problem:
        return (
            f'<figure data-classes="">{head}</figcaption><pre>{_text(card.problem)}</pre></figure>'
        )
    chips = "".join(
        f'<li data-class="{k}"><i style="background:rgb{spec.palette[k]}"></i>'
        f"{_text(spec.classes[k])} {_percent(share)}</li>"
        for k, share in card.shares.items()
    )
    classes = " ".join(str(k) for k in card.shares)
    name = _text(card.title)
    return (
        f'<figure data-classes="{classes}"><div class="stack">'
        f'<img src="data:image/jpeg;base64,{_base64(card.picture)}" alt="{name}">'
        f'<img class="labels" src="data:image/png;base64,{_base64(card.labels)}" '
        f'alt="labels of {name}"></div>{head}</figcaption><ul>{chips}</ul></figure>'
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "&lt;&nbsp;0.1%"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="{generator}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><header><h1>{title}</h1><p>{root}</p>
<label>Labels <input id="fade" type="range" min="0" max="100" value="55"></label>
<label>Only with <select id="only"><option value="">any class</option>{options}</select></label>
<p>Thin lines: ignored pixels. Hold a picture to see it without labels.</p></header>
<main>{cards}</main><script>{script}</script></body></html>
"""

_STYLE = """
:root{--fade:.55;color-scheme:light dark}
body{margin:0;font:14px/1.45 system-ui,sans-serif;background:Canvas;color:CanvasText}
header{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:4px 24px;
align-items:center;padding:10px 20px;background:Canvas;border-bottom:1px solid #8885}
h1{font-size:17px;margin:0}header p{margin:0;opacity:.75}label{white-space:nowrap}
input,select{vertical-align:middle}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:20px;padding:20px}
figure{margin:0;border:1px solid #8885;border-radius:6px;overflow:hidden}
figure[hidden]{display:none}
.stack{position:relative;line-height:0;cursor:pointer}.stack img{width:100%}
.stack .labels{position:absolute;inset:0;height:100%;opacity:var(--fade);
image-rendering:pixelated}
.stack:active .labels{opacity:0}
figcaption{padding:8px 10px 0;overflow-wrap:anywhere}figcaption span{opacity:.75}
ul{list-style:none;display:flex;flex-wrap:wrap;gap:2px 12px;margin:0;padding:4px 10px 10px}
li i{display:inline-block;width:.8em;height:.8em;margin-right:5px;border:1px solid #888;
vertical-align:-1px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;padding:8px 10px;color:#b3261e}
"""

_SCRIPT = """
const fade=document.getElementById('fade'),only=document.getElementById('only');
fade.oninput=()=>document.documentElement.style.setProperty('--fade',fade.value/100);
only.onchange=()=>document.querySelectorAll('figure').forEach(f=>{
f.hidden=only.value!==''&&!f.dataset.classes.split(' ').includes(only.value);});
"""
