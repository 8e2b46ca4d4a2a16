"""The network in the form that predicts fastest, eager or compiled."""

from __future__ import annotations

from cgrseg.inference.fast.compiled import CompiledBackend, Preparation
from cgrseg.inference.fast.network import FastNetwork, fast_form

__all__ = ["CompiledBackend", "FastNetwork", "Preparation", "fast_form"]
