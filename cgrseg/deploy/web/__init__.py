"""A web page and an HTTP API around a predictor, for one machine and its user."""

from __future__ import annotations

from cgrseg.deploy.web.server import serve
from cgrseg.deploy.web.service import Limits, Service

__all__ = ["Limits", "Service", "serve"]
