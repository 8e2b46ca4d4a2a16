"""Onto devices and into a browser: exports that prove themselves, quantisation, a web page."""

from __future__ import annotations

from cgrseg.deploy.export import ExportResult, export
from cgrseg.deploy.verify import Check, Tolerance

__all__ = ["Check", "ExportResult", "Tolerance", "export"]
