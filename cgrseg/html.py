"""HTML pages from the Jinja2 templates in `cgrseg/templates`.

Autoescape is on: text from data and files cannot add markup.  A page is one file that contains its
style, scripts and images, and makes no request.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache

import jinja2


def render(template: str, **values: object) -> str:
    """Render a template; a value that the template needs and does not get is an error."""
    return _environment().get_template(template).render(values)


def macro(template: str, name: str) -> Callable[..., str]:
    """A macro of a template as a function; a template does not escape its result again."""
    found: Callable[..., str] = getattr(_environment().get_template(template).module, name)
    return found


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0..1 as a percentage without its sign; a dash where undefined."""
    return "–" if share is None else f"{100.0 * share:.{digits}f}"


def data_url(content: bytes, media_type: str) -> str:
    """The address that holds an image itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cgrseg"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "data_url": data_url}
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment
