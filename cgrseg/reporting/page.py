"""HTML pages that stand alone: no request leaves them, in light, in dark and on paper."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A part of a page: the name in its address, its heading, and its HTML."""

    name: str
    title: str
    body: str


def escape(value: object) -> str:
    """Text that is safe inside HTML, also within quoted attributes."""
    return html.escape(str(value), quote=True)


def page(
    title: str, subtitle: str, sections: Sequence[Section], data: Mapping[str, Any] | None = None
) -> str:
    """A complete page.

    Args:
        title: shown on top and in the browser's tab, as text.
        subtitle: under the title, as text.
        sections: in order; those with an empty body are left out.
        data: values for the page's script.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{escape(s.name)}">{escape(s.title)}</a>' for s in shown)
    body = "".join(
        f'<section id="{escape(s.name)}"><h2>{escape(s.title)}</h2>{s.body}</section>'
        for s in shown
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('report.css')}</style>\n</head>\n<body>\n"
        f"<header><div><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div>"
        '<button id="theme" type="button" title="Light or dark">◐</button></header>\n'
        f"<nav>{links}</nav>\n<main>{body}</main>\n"
        '<div id="tip" role="status"></div>'
        '<dialog id="large"><img alt=""><p></p></dialog>\n'
        f'<script id="data" type="application/json">{script_json(data or {})}</script>\n'
        f"<script>\n{asset('report.js')}\n{asset('confusion.js')}</script>\n</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """Text of a file that comes with the package."""
    return (resources.files("cgrseg.reporting") / "assets" / name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def picture(
    pixels: npt.NDArray[np.uint8], caption: str, *, longest: int = 512, photo: bool = True
) -> str:
    """A picture inside the page, with its caption; a click shows it large.

    Args:
        pixels: RGB uint8 (H, W, 3).
        caption: as text.
        longest: pixels that its longer side is reduced to.
        photo: JPEG; else PNG, which keeps the exact colours of label maps.
    """
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_AREA if photo else cv2.INTER_NEAREST
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=method), np.uint8)
    suffix, kind = (".jpg", "jpeg") if photo else (".png", "png")
    options = [cv2.IMWRITE_JPEG_QUALITY, 86] if photo else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    encoded, data = cv2.imencode(suffix, np.ascontiguousarray(pixels[..., ::-1]), options)
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode {suffix}")
    source = base64.b64encode(data.tobytes()).decode("ascii")
    sharp = "" if photo else ' class="sharp"'
    return (
        f'<figure><img{sharp} src="data:image/{kind};base64,{source}" alt="{escape(caption)}" '
        f'width="{pixels.shape[1]}" height="{pixels.shape[0]}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def facts(values: Mapping[str, Any], prefix: str = "") -> str:
    """Nested settings as a table of two columns, one row per value."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_shown(value))}</td></tr>"
        for name, value in flatten(values, prefix)
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>' if rows else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as pairs of dotted name and value."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{name}.")
        else:
            rows.append((name, value))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 0..1 as a percentage without its sign; a dash where undefined."""
    return "–" if value is None else f"{100.0 * value:.{digits}f}"
