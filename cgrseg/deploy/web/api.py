"""`POST /api/predict`: a photo in, labels, overlay or shares out, refusals as JSON."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cgrseg.deploy.web.result import as_json, label_png, overlay_jpeg
from cgrseg.deploy.web.service import BusyError, Service
from cgrseg.errors import CGRSegError, ConfigError, EnvironmentProblem, explain
from cgrseg.files import explained
from cgrseg.inference import Prediction


def add_api(application: Any, service: Service) -> None:
    """Add the route to a FastAPI application."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response

    def answer(content: bytes, model: str, result: str) -> Any:
        if result not in ("labels", "overlay", "shares"):
            raise ConfigError(
                explain(
                    "result",
                    found=repr(result)[:80],
                    expected="labels, overlay or shares",
                    remedy="choose from these",
                )
            )
        found = _labelled(service, content, model)
        if result == "shares":
            return JSONResponse(as_json(found))
        if result == "overlay":
            return Response(overlay_jpeg(found, 0.5), media_type="image/jpeg")
        return Response(label_png(found), media_type="image/png")

    async def predict(request: Any) -> Any:
        model = request.query_params.get("model", next(iter(service.models)))
        result = request.query_params.get("result", "labels")
        try:
            return await run_in_threadpool(answer, await request.body(), model, result)
        except BusyError as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "30"})
        except EnvironmentProblem as error:  # this machine's, for example a full disk
            return JSONResponse({"error": str(error)}, 507)
        except CGRSegError as error:
            return JSONResponse({"error": str(error)}, 400)

    application.add_route("/api/predict", predict, methods=["POST"])


def _labelled(service: Service, content: bytes, model: str) -> Prediction:
    with (
        explained(tempfile.gettempdir()),
        tempfile.NamedTemporaryFile(suffix=".upload") as upload,
    ):
        upload.write(content)
        upload.flush()
        return service.predict(Path(upload.name), model)
