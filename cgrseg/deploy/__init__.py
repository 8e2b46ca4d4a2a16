"""Exports that are checked against the float32 network, 8-bit quantization, the web page."""

from __future__ import annotations

from cgrseg.deploy.export import ExportResult, export
from cgrseg.deploy.verify import Check, Tolerance

__all__ = ["Check", "ExportResult", "Tolerance", "export"]
