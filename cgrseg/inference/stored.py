"""What a checkpoint or an exported file says beside its weights, and what stands in for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cgrseg.config.schema import TestConfig
from cgrseg.errors import ConfigError, WeightsError

_LOG = logging.getLogger("cgrseg.inference")


def stored_test_settings(settings: Mapping[str, Any] | None, source: str | Path) -> TestConfig:
    """Test settings as a file holds them.

    Args:
        settings: by name; None: it holds none, and the published ones of ADE20K are taken.
        source: the file, for messages.

    Raises:
        WeightsError: settings that this version does not have.
    """
    if settings is None:
        _LOG.warning(
            "%s holds no test settings; the published ones of ADE20K are used (short side 512)",
            source,
        )
        return TestConfig()
    try:
        return TestConfig(**settings)
    except (ValidationError, ConfigError, TypeError) as error:
        raise WeightsError(
            source,
            found=f"test settings that cannot be used ({error})",
            expected="those of a run, as this version writes them",
            remedy="pass test=TestConfig(...) to from_pretrained, or update cgrseg",
        ) from error
