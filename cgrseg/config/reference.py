"""Table of all settings, for `docs/configuration.md` and for printing a config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cgrseg.config.fields import describe, subsection
from cgrseg.config.schema import Config, find_setting, walk_settings
from cgrseg.variants import VARIANTS, imagenet_weights


@dataclass(frozen=True)
class FieldDescription:
    """Documentation of one setting.

    Attributes:
        path: dotted name, as in an override.
        accepts: accepted values, in words.
        default: its default as JSON.
        description: meaning and unit.
    """

    path: str
    accepts: str
    default: str
    description: str


def describe_fields() -> list[FieldDescription]:
    """Every setting in the schema's order."""
    defaults = flatten(Config())
    return [
        FieldDescription(path, describe(annotation), defaults[path], _description(path))
        for path, annotation in walk_settings()
    ]


def flatten(config: Config) -> dict[str, str]:
    """Dotted name to value as JSON, for every setting of a config."""
    tree = config.model_dump(mode="json")
    return {path: json.dumps(_value(tree, path), ensure_ascii=False) for path, _ in walk_settings()}


def setting_lines(config: Config, *, against: Config | None = None) -> list[str]:
    """`name = value` for every setting, or only for those that differ from another config."""
    other = flatten(against) if against is not None else {}
    return [
        f"{path} = {value}" for path, value in flatten(config).items() if other.get(path) != value
    ]


def markdown_reference() -> str:
    """The reference as Markdown, one table per section."""
    sections: dict[str, list[FieldDescription]] = {}
    for field in describe_fields():
        sections.setdefault(field.path.rpartition(".")[0], []).append(field)
    parts = []
    for section, fields in sections.items():
        parts.append(f"### `{section}`\n" if section else "### The run\n")
        parts.append(_summary(section) + "\n")
        parts.append("| setting | accepts | default | meaning |\n|---|---|---|---|")
        parts.extend(
            f"| `{f.path}` | {_cell(f.accepts)} | `{_cell(f.default)}` | {_cell(f.description)} |"
            for f in fields
        )
        parts.append("")
        if section == "model":
            parts.append("| variant | backbone | ImageNet weights for `model.pretrained` |")
            parts.append("|---|---|---|")
            parts.extend(
                f"| `{name}` | `{variant.backbone}` | `{imagenet_weights(name)}` |"
                for name, variant in VARIANTS.items()
            )
            parts.append("")
    return "\n".join(parts)


def _summary(section: str) -> str:
    described = subsection(find_setting(section)) if section else Config
    return (described.__doc__ or "").strip().splitlines()[0] if described else ""


def _description(path: str) -> str:
    section, _, leaf = path.rpartition(".")
    owner = subsection(find_setting(section)) if section else Config
    return (owner.model_fields[leaf].description or "") if owner else ""


def _value(tree: dict[str, Any], path: str) -> Any:
    value: Any = tree
    for part in path.split("."):
        value = value[part]
    return value


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
