"""Shell completion: presets, settings with their values, devices, precisions.

This module does not import PyTorch, so that completion is fast.
"""

from __future__ import annotations

import glob
import os
from typing import Any

from cgrseg.variants import VARIANTS

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def settings(ctx: Any, incomplete: str) -> list[str]:
    """`KEY=VALUE`: names of settings, then values of the typed setting."""
    key, _ = _setting_before_cursor(incomplete)
    return _setting_names(incomplete) if key is None else _values(incomplete)


def files_or_settings(ctx: Any, incomplete: str) -> list[str]:
    """Files and settings; empty for an empty word, so that the shell lists its files."""
    return [*settings(ctx, incomplete), *_files(incomplete)] if incomplete else _values(incomplete)


def config_files_or_settings(ctx: Any, incomplete: str) -> list[str]:
    """Presets, files and settings, for commands that take all of them as arguments."""
    return [*presets(incomplete), *files_or_settings(ctx, incomplete)]


def presets(incomplete: str) -> list[str]:
    """Names of presets."""
    from cgrseg.config.presets import list_presets

    return [name for name in list_presets() if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Variants of the network."""
    return [name for name in VARIANTS if name.startswith(incomplete)]


def models_and_presets(incomplete: str) -> list[str]:
    """Variants and presets."""
    return [*models(incomplete), *presets(incomplete)]


def models_files_or_settings(ctx: Any, incomplete: str) -> list[str]:
    """Variants, files and settings."""
    return [*models(incomplete), *files_or_settings(ctx, incomplete)]


def datasets(incomplete: str) -> list[str]:
    """Datasets of the presets, and `custom`."""
    from cgrseg.config.presets import DATASETS

    names = dict.fromkeys(str(recipe.settings["data"]["dataset"]) for recipe in DATASETS.values())
    return [name for name in names if name.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    """Device names; the command checks whether the device exists."""
    return [name for name in ("cpu", "cuda", "cuda:0", "mps") if name.startswith(incomplete)]


def precisions(incomplete: str) -> list[str]:
    """Names of precisions."""
    return [name for name in PRECISIONS if name.startswith(incomplete)]


def stored_precisions(incomplete: str) -> list[str]:
    """Names of precisions that `cgrseg export --precision` writes."""
    return [name for name in ("fp32", "fp16") if name.startswith(incomplete)]


def _values(incomplete: str) -> list[str]:
    """Values of the typed setting; empty without one."""
    key, value = _setting_before_cursor(incomplete)
    values = [text for text in _values_of(key or "") if text.startswith(value)]
    # bash splits words at the equals sign and replaces only the part after it.
    return values if "COMP_WORDS" in os.environ else [f"{key}={text}" for text in values]


def _files(incomplete: str) -> list[str]:
    if _setting_before_cursor(incomplete)[0] is not None:
        return []
    found = sorted(glob.glob(glob.escape(incomplete) + "*"))
    return [f"{path}/" if os.path.isdir(path) else path for path in found]


def _setting_names(incomplete: str) -> list[str]:
    from cgrseg.config.schema import walk_settings

    names = [name for name, _ in walk_settings() if name.startswith(incomplete)]
    if len(names) != 1:
        return [f"{name}=" for name in names]
    # With several candidates, the shell stops at the equals sign and adds no space.
    return [f"{names[0]}={text}" for text in ("", *_values_of(names[0]))]


def _values_of(key: str) -> list[str]:
    from cgrseg.config.fields import choices, subsection
    from cgrseg.config.reference import flatten
    from cgrseg.config.schema import Config, find_setting

    annotation = find_setting(key)
    if annotation is None or subsection(annotation) is not None:
        return []
    few = choices(annotation)
    return list(few) if few else [flatten(Config())[key].strip('"')]


def _setting_before_cursor(incomplete: str) -> tuple[str | None, str]:
    """Setting whose value is being typed, and the typed part of the value."""
    if "=" in incomplete:
        key, _, value = incomplete.partition("=")
        return key, value
    words = os.environ.get("COMP_WORDS", "").split()
    place = int(os.environ.get("COMP_CWORD", "0") or 0)
    if words[place : place + 1] == ["="] and place > 0:
        return words[place - 1], ""
    if words[place - 1 : place] == ["="] and place > 1:
        return words[place - 2], incomplete
    return None, incomplete
