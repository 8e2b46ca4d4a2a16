"""Settings of a run: schema, presets, loading and overrides."""

from __future__ import annotations

from cgrseg.config.loading import load_config
from cgrseg.config.presets import list_presets, preset
from cgrseg.config.reference import describe_fields, setting_lines
from cgrseg.config.schema import Config

__all__ = [
    "Config",
    "describe_fields",
    "list_presets",
    "load_config",
    "preset",
    "setting_lines",
]
