"""Load a config by the name of a preset, from a Python or JSON file, or from a run folder.

A Python file exposes `config` (a :class:`Config`, or a dictionary of its tables) and is run as a
program: only open files that you trust.  A JSON file holds the same tables, as `config.json` in a
run folder.
"""

from __future__ import annotations

import difflib
import json
import os
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cgrseg.config.mmseg import refuse
from cgrseg.config.mmseg_reader import is_mmseg_file
from cgrseg.config.presets import list_presets, named_preset
from cgrseg.config.schema import Config
from cgrseg.config.settings import (
    NUM_CLASSES,
    build,
    merge,
    parse_overrides,
    readable,
    unknown_setting,
)
from cgrseg.datasets import get_spec
from cgrseg.errors import CGRSegError, ConfigError
from cgrseg.input_files import read_input_text, refuse_special


def load_config(
    path_or_name: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Load a config and apply overrides.

    Args:
        path_or_name: a `.py` file that exposes `config`, a `.json` file, a run folder
            (its `config.json`, with that folder as `work_dir` in the place of a stored
            one), or the name of a preset.
        overrides: `key=value` texts with dotted keys, or a table of the same keys (nested
            tables too) whose values are taken as they are.

    Raises:
        ConfigError: nothing of that name, a file that does not work, an unknown setting
            (the message names the nearest), or a value that does not fit.
    """
    config = _load(path_or_name)
    if not overrides:
        return config
    changes = dict(overrides if isinstance(overrides, Mapping) else parse_overrides(overrides))
    count = changes.pop(NUM_CLASSES, None)
    changed = build(merge(config.model_dump(), changes))
    if count is not None and count != _class_count(changed):
        raise unknown_setting(NUM_CLASSES)
    return changed


def _class_count(config: Config) -> int | None:
    """Number of classes, where the settings give it without the dataset's files."""
    data = config.data
    if data.merge or data.drop:
        return None
    if data.classes is not None:
        return len(data.classes)
    return None if data.dataset == "custom" else len(get_spec(data.dataset).classes)


def as_config(config: Config | str | Path) -> Config:
    """A config as it is, or the one that a name, a file or a run folder gives.

    Raises:
        ConfigError: as :func:`load_config`, and for a value of another type.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, (str, Path)):
        return load_config(config)
    raise ConfigError(
        "config",
        found=f"a value of type {type(config).__name__}",
        expected="a Config, or the name of a preset, a file or a run folder",
        remedy="make one with cgrseg.load_config(name, {'data.root': ...}), whose second "
        "argument changes settings",
    )


def _load(path_or_name: str | Path) -> Config:
    path = Path(path_or_name)
    if is_mmseg_file(path):
        raise refuse(path)
    if path.is_dir() and (path / "config.json").is_file():
        config = _from_json(path / "config.json")
        # The run folder may have been moved since the training.
        config.work_dir = str(path)
        return config
    if path.name == "config.json" and path.is_file() and any(path.parent.glob("*.pth")):
        config = _from_json(path)
        if config.work_dir is not None:
            config.work_dir = str(path.parent)
        return config
    if path.suffix == ".py" and os.path.lexists(path) and not path.is_dir():
        return _from_python(path)
    if path.suffix == ".json" and os.path.lexists(path) and not path.is_dir():
        return _from_json(path)
    found = named_preset(str(path_or_name))
    if found is None:
        raise _nothing_there(path_or_name)
    return found


def _from_python(path: Path) -> Config:
    try:
        refuse_special(path)
        value = runpy.run_path(str(path)).get("config")
    except ValidationError as error:
        raise readable(error, str(path)) from None
    except CGRSegError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # a user's file can raise anything
        raise ConfigError(
            f"{path}{_line_in(path, error)}",
            found=f"the file stops with {type(error).__name__}: {error}",
            expected="a Python file that runs and exposes `config`",
            remedy="correct that line",
        ) from error
    if isinstance(value, Mapping):
        value = build(value, str(path))
    if not isinstance(value, Config):
        raise ConfigError(
            path,
            found="no `config` in it" if value is None else f"config is {type(value).__name__}",
            expected="`config`, made by cgrseg.config.preset(...) or Config(...)",
            remedy="see local_configs/cgrseg for examples",
        )
    # A copy of a shipped file is a run of its own, and must not write into the other's folder.
    if named_preset(value.name) is not None:
        value.name = path.stem
    return value


def _line_in(path: Path, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {frames[-1].lineno}" if frames else ""


def _from_json(path: Path) -> Config:
    try:
        value = json.loads(read_input_text(path))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            path,
            found=f"it cannot be read as JSON ({getattr(error, 'strerror', None) or error})",
            expected="the tables of a config, as in a run's config.json",
            remedy="correct it, or start from a run's config.json",
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(
            path,
            found=f"the outermost value is {type(value).__name__}",
            expected="a table of settings",
            remedy="start from a run's config.json",
        )
    return build(value, str(path))


def _nothing_there(path_or_name: str | Path) -> ConfigError:
    path = Path(path_or_name)
    if path.is_dir():
        found = "the folder holds no config.json"
    elif path.exists():
        found = f"files that end in {path.suffix or 'nothing'} are not read as configs"
    else:
        found = "there is no such file and no preset of that name"
    near = difflib.get_close_matches(path.stem, list_presets(), n=1, cutoff=0.5)
    remedy = f"did you mean the preset {near[0]}?" if near else "check the path"
    if path.stem in list_presets():
        remedy = f"the name alone, {path.stem}, works from any folder; or correct the path"
    return ConfigError(
        path_or_name,
        found=found,
        expected="a .py or .json file, a run folder, or a preset (`cgrseg info --presets`)",
        remedy=remedy,
    )
