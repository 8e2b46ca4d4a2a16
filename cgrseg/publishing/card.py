"""Model card of published weights: `README.md` with the front matter that the hub reads.

A card holds what the records of the run say, and no path, user name or host: settings that name
a place are shown without it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cgrseg.config import Config
from cgrseg.config.presets import DATASETS, named_preset, preset
from cgrseg.datasets import get_spec
from cgrseg.datasets.spec import Download
from cgrseg.models import CGRSeg
from cgrseg.reporting.cost import network_cost
from cgrseg.reporting.records import EvaluationRecord
from cgrseg.variants import VARIANTS

# Settings that name a place on the publisher's machine, whatever they hold.
_PLACES = {
    "data.root": "DATA_ROOT",
    "data.extra": "FURTHER_DATA",
    "data.unlabeled": "FURTHER_IMAGES",
    "data.split_lists": "SPLIT_LISTS",
    "model.pretrained": "WEIGHTS",
    "train.load_from": "WEIGHTS",
    "train.teacher": "WEIGHTS",
}
# Settings that the card shows elsewhere, or that say nothing about the weights.
_LEFT_OUT = (
    *("name", "work_dir", "data.classes", "data.palette", "data.workers"),
    *("train.accept_data", "train.wandb", "train.mlflow"),
)
# An absolute path, a home folder or a drive, at the beginning of a text or of a part of it.
_PLACE = re.compile(r"""(?:^|[\s"'=:,;(\[])(?:[/~]|\\\\|[A-Za-z]:[\\/])""")
_SIGNATURE = "<!-- as written by cgrseg publish, SHA-256 {} -->\n"
# The hub's names of scores, by ours.
_HUB_METRICS = {"mIoU": "mean_iou", "aAcc": "accuracy", "mAcc": "mean_accuracy"}

_SEVERAL_VIEWS = (
    "\n- The test settings have several views (windows, scales or mirroring). "
    "transformers cannot do them; cgrseg does."
)

_CITATION = """```bibtex
@inproceedings{ni2024context,
  title={Context-guided spatial feature reconstruction for efficient semantic segmentation},
  author={Ni, Zhenliang and Chen, Xinghao and Zhai, Yingjie and Tang, Yehui and Wang, Yunhe},
  booktitle={European Conference on Computer Vision},
  pages={239--255},
  year={2024},
  organization={Springer}
}
```"""


@dataclass(frozen=True)
class Measured:
    """Scores of one evaluation of the published weights.

    Attributes:
        how: split, number of images, scales and precision, for people.
        split: name of the split.
        scores: scores in 0..1 by name.
        per_class: IoU in 0..1 by class name; empty where only means were recorded.
    """

    how: str
    split: str
    scores: dict[str, float]
    per_class: dict[str, float | None]

    @classmethod
    def of_record(cls, record: EvaluationRecord) -> Measured:
        """The scores of an `evaluation.json`."""
        settings = record.get("settings", {})
        test = settings.get("test") or {}
        several = len(test.get("ratios") or [1]) > 1 or test.get("flip")
        windows = ", sliding windows" if test.get("mode") == "slide" else ""
        how = (
            f"split {settings.get('split')}, {record.get('images')} images, "
            f"{'several scales' if several else 'one scale'}{windows}, "
            f"{settings.get('precision', 'fp32')}"
        )
        scores = {name: value for name, value in record["scores"].items() if value is not None}
        classes = {each["class"]: each["IoU"] for each in record["per_class"]}
        return cls(how, str(settings.get("split")), scores, classes)


def model_card(
    name: str,
    model: CGRSeg,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    measured: Sequence[Measured],
    *,
    config: Config | None,
    iteration: int | None,
    versions: str,
    license_id: str | None,
    hub_id: str | None,
    plain: bool,
) -> str:
    """Text of the card.

    Args:
        name: title.
        model: the published network.
        classes: names in id order.
        palette: RGB 0..255 per class.
        measured: evaluations of these weights; the first one is the main result.
        config: config of the run; None: unknown.
        iteration: iterations that trained the weights; None: unknown.
        versions: versions that trained and published the weights.
        license_id: license of the weights as the hub names it; None: none was given.
        hub_id: hub id in the examples; None: the word FOLDER stands there.
        plain: whether the test settings mean one plain view, which transformers can do.
    """
    cost = network_cost(
        model.variant,
        model.num_classes,
        context_blocks=model.context_blocks,
        channels=model.decode_head.conv_seg.in_channels,
        attention_bias=model.backbone.attention_bias,
        in_channels=model.in_channels,
        head=model.head,
    )
    title = f"CGRSeg-{model.variant[-1].upper()}"
    dataset = None if config is None else config.data.dataset
    own = dataset in (None, "custom")
    spec = None if own else get_spec(str(dataset))
    about = "a dataset of its publisher" if spec is None else spec.title
    data = None if spec is None else spec.download
    address = hub_id or "FOLDER"
    sections = [
        _front_matter(name, measured, license_id, str(dataset), None if own else about, plain),
        f"# {name}",
        f"{title} for semantic segmentation (Ni et al., ECCV 2024, "
        f"[arXiv 2405.06228](https://arxiv.org/abs/2405.06228)), trained on {about}: "
        f"{model.num_classes} classes.",
        "| | |\n|---|---|\n"
        f"| network | {title}: {VARIANTS[model.variant].backbone}, {model.head} head of width "
        f"{model.decode_head.conv_seg.in_channels}, {model.context_blocks} context blocks, "
        f"{model.backbone.attention_bias} attention biases |\n"
        f"| parameters | {cost.inference_parameters / 1e6:.2f} M |\n"
        f"| FLOPs at 512x512 | {cost.published_macs / 1e9:.2f} G as in the paper (convolutions), "
        f"{cost.all_macs / 1e9:.2f} G with matrix products |\n"
        "| weights | `model.safetensors`, float32 |",
        "## Scores\n\n" + _scores(measured),
        "## Classes\n\n" + _class_table(classes, palette, measured),
        _usage(address, plain),
        "## Training\n\n" + _training(config, iteration, about, data) + f"\n\n{versions}",
        "## Limits\n\n"
        "- The network knows these classes only, and gives every pixel one of them.\n"
        f"- It was trained on {about}. Measure it on your own images before you rely on it."
        + ("" if plain else _SEVERAL_VIEWS),
        "## License\n\n" + _license(license_id),
        "## Citation\n\n" + _CITATION,
    ]
    return "\n\n".join(sections) + "\n"


def signed_card(text: str) -> str:
    """A card with its digest in a last line, by which :func:`is_signed` notices edits."""
    return text + _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest())


def is_signed(content: bytes) -> bool:
    """Whether a card is as :func:`signed_card` gave it."""
    text = content.decode(errors="replace").replace("\r\n", "\n")
    *lines, _ = text.splitlines(keepends=True) or [""]
    return text == signed_card("".join(lines))


def _front_matter(
    name: str,
    measured: Sequence[Measured],
    license_id: str | None,
    dataset: str,
    title: str | None,
    plain: bool,
) -> str:
    shown = measured[0] if measured else None
    found = {} if shown is None else shown.scores
    scores = {key: found[key] for key in _HUB_METRICS if key in found}
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=dataset,
            dataset_name=title or "a dataset of the publisher",
            dataset_split=None if shown is None else shown.split,
            metric_type=_HUB_METRICS[key],
            metric_name=key,
            metric_value=value,
        )
        for key, value in scores.items()
    ]
    data = ModelCardData(
        license=license_id,
        library_name="cgrseg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "cgrseg", *(["transformers"] if plain else [])],
        datasets=None if title is None else [dataset],
        metrics=[_HUB_METRICS[key] for key in scores] or None,
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _scores(measured: Sequence[Measured]) -> str:
    if not measured:
        return "These weights were published without an evaluation."
    names = [name for name in _HUB_METRICS if any(name in each.scores for each in measured)]
    head = f"| evaluation | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
    rows = [
        f"| {each.how} | " + " | ".join(_percent(each.scores.get(name)) for name in names) + " |"
        for each in measured
    ]
    return "\n".join([head, *rows]) + "\n\nIn percent."


def _class_table(
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    measured: Sequence[Measured],
) -> str:
    scored = next((each for each in measured if each.per_class), None)
    head = "| id | class | color |" + (" IoU |" if scored else "")
    rule = "|---|---|---|" + ("---|" if scored else "")
    rows = []
    for number, (name, color) in enumerate(zip(classes, palette, strict=True)):
        row = f"| {number} | {_cell(name)} | `#{bytes(color).hex()}` |"
        rows.append(row + (f" {_percent(scored.per_class.get(name))} |" if scored else ""))
    return "\n".join([head, rule, *rows])


def _cell(text: str) -> str:
    """Text of a table cell, in which a class name cannot begin markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("[", "\\[").replace("`", "\\`").replace("*", "\\*")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _usage(address: str, plain: bool) -> str:
    ours = f"""## Use

```shell
cgrseg predict {address} street.jpg --out painted
```

```python
import cgrseg

result = cgrseg.Predictor.from_pretrained("{address}")("street.jpg")
result.labels  # (H, W) class ids at the image's own size
```"""
    theirs = f"""With transformers (`pip install "cgrseg[hf]"`), the labels are the same:

```python
import cgrseg  # registers the classes
from transformers import pipeline

segments = pipeline("image-segmentation", model="{address}")("street.jpg")
```"""
    return f"{ours}\n\n{theirs}" if plain else ours


def _training(
    config: Config | None, iteration: int | None, about: str, data: Download | None
) -> str:
    if config is None:
        return "The checkpoint holds no record of its training."
    base, differences = nearest_preset(config)
    words = [f"{name}={value}" for name, value in differences.items()]
    command = shlex.join(["cgrseg", "train", base, *words])
    done = "" if iteration is None else f" The weights are those after iteration {iteration:,}."
    terms = "" if data is None else f" Terms of the data: {data.terms} ({data.terms_page})."
    return (
        f"On {about}, split {config.data.train_split}.{terms} "
        f"{config.schedule.max_iters:,} iterations.{done}\n\n"
        f"```shell\n{command}\n```\n\n"
        f"Settings that are not in the command are those of the preset `{base}`. Words in capitals "
        "stand for places on the machine that trained."
    )


def nearest_preset(config: Config) -> tuple[str, dict[str, str]]:
    """The preset with the fewest differences, and the differing settings.

    Returns:
        Its name, and text values by dotted name, without places and what the card shows elsewhere.
    """
    named = named_preset(config.name)
    candidates = [preset(config.model.name, dataset) for dataset in DATASETS]
    if named is not None and named.model.name == config.model.name:
        candidates.insert(0, named)
    found = [(_differences(config, each), each) for each in candidates]
    changed, base = min(found, key=lambda pair: len(pair[0]))
    return base.name, changed


def _differences(config: Config, base: Config) -> dict[str, str]:
    ours, theirs = config.model_dump(mode="json"), base.model_dump(mode="json")
    pairs: dict[str, tuple[Any, Any]] = {}
    for section, values in ours.items():
        if isinstance(values, dict):
            pairs |= {f"{section}.{key}": (v, theirs[section][key]) for key, v in values.items()}
        else:
            pairs[section] = (values, theirs[section])
    return {
        name: _public(name, value)
        for name, (value, usual) in pairs.items()
        if value != usual and name not in _LEFT_OUT
    }


def _public(name: str, value: Any) -> str:
    """A value without places on the publisher's machine."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if value in (None, "imagenet"):
        return text
    if name in _PLACES:
        return _PLACES[name]
    return "PATH" if _PLACE.search(text) else text


def _license(license_id: str | None) -> str:
    if license_id is None:
        return (
            "The publisher gave no license, so the right to use these weights is not granted by "
            "this card. The publisher sets it with `license:` at the top of this file, or with "
            "`cgrseg publish --license ID`."
        )
    return f"The weights are published under `{license_id}`."
