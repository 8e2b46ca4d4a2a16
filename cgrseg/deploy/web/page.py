"""The page: choose a model, drop a photo or take one, read the result."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

from cgrseg.deploy.web.result import as_html
from cgrseg.deploy.web.service import Service
from cgrseg.deploy.web.uploads import KEPT_SECONDS
from cgrseg.errors import CGRSegError

_HERE = Path(__file__).parent
_API = """Without the page, from any program on this machine:

```
curl --data-binary @photo.jpg '{address}api/predict?model={model}' -o labels.png
curl --data-binary @photo.jpg '{address}api/predict?result=overlay' -o overlay.jpg
curl --data-binary @photo.jpg '{address}api/predict?result=shares'
```
"""


def make_page(gradio: Any, service: Service, uploads: Path, address: str) -> Any:
    """The page as `gradio.Blocks`.

    Args:
        gradio: the package.
        service: labels the photos.
        uploads: folder below which every uploaded file lies.
        address: of the server, for the examples.
    """
    names = list(service.models)

    def label(upload: dict[str, Any] | None, model: str) -> tuple[str, str]:
        return answer(service, uploads, upload, model)

    cache = (60, KEPT_SECONDS)
    with gradio.Blocks(title="CGRSeg", analytics_enabled=False, delete_cache=cache) as page:
        gradio.Markdown(
            "# CGRSeg\nEvery pixel of a photo gets a class. Nothing leaves this machine."
        )
        with gradio.Row():
            with gradio.Column(scale=1):
                photo = gradio.Image(
                    label="Photo",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    buttons=[],
                    height=320,
                )
                model = gradio.Dropdown(
                    names, value=names[0], label="Model", visible=len(names) > 1
                )
                opacity = gradio.Slider(0, 1, value=0.5, step=0.05, label="Opacity of the labels")
                start = gradio.Button("Label it", variant="primary")
            with gradio.Column(scale=2):
                said = gradio.Markdown("")
                result = gradio.HTML("", elem_id="result", js_on_load=None)
        with gradio.Accordion("Use it from a program", open=False):
            gradio.Markdown(_API.format(address=address, model=names[0]))
        work: dict[str, Any] = {
            "fn": label,
            "inputs": [photo, model],
            "outputs": [result, said],
            "preprocess": False,  # files are looked at by our own limits first
            "concurrency_limit": service.limits.waiting,
            "api_visibility": "private",
        }
        start.click(**work)
        # What came while another was under way is done after it, not forgotten.
        photo.input(**work, trigger_mode="always_last")
        opacity.input(
            None,
            opacity,
            None,
            js="(v) => {document.documentElement.style.setProperty('--cgrseg-opacity', v)}",
            api_visibility="private",
        )
    page.queue(max_size=4 * service.limits.waiting)
    return page


def answer(
    service: Service, uploads: Path, upload: dict[str, Any] | None, model: str
) -> tuple[str, str]:
    """The result as HTML and what is said about it as Markdown; a refusal has no result.

    Args:
        service: labels the photo.
        uploads: folder below which every uploaded file lies.
        upload: what the page knows of the photo: `path` and `orig_name`.
        model: one of the service's.
    """
    if not upload or not upload.get("path"):
        return "", "Drop a photo first, or take one."
    photo = Path(upload["path"]).resolve()
    if not photo.is_relative_to(uploads.resolve()) or not photo.is_file():
        return "", "This file was not uploaded here, or too long ago: drop it again."
    began = time.perf_counter()
    try:
        found = service.predict(photo, model)
        taken = time.perf_counter() - began
        shown = as_html(found, str(upload.get("orig_name") or "photo"))
    except CGRSegError as error:
        return "", _refusal(error)
    said = f"{html.escape(model)}, {taken:.2f} s. Point at the picture to read a class."
    return shown, said


def look(gradio: Any) -> dict[str, Any]:
    """Theme, styles and script; everything comes from this server or the system."""
    return {
        "theme": gradio.themes.Base(
            primary_hue="emerald",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        "css": (_HERE / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{(_HERE / 'viewer.js').read_text(encoding='utf-8')}</script>",
    }


def _refusal(error: CGRSegError) -> str:
    """A message of ours as Markdown that cannot be anything else."""
    lines = [html.escape(line.strip()) for line in str(error).splitlines()]
    return '<div class="cgrseg-refusal">' + "<br>".join(lines) + "</div>"
