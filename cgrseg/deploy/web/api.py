"""The page and the HTTP API: `POST /v1/segment` and its description; errors are JSON.

Annotations here are evaluated, not postponed: FastAPI reads them, and its own classes are known
inside the function only, since the package is an extra.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from cgrseg import __version__
from cgrseg.data.geometry import Image
from cgrseg.data.label_files import encode_label_png
from cgrseg.deploy.web.request_filter import LOG, SEGMENT, internal_error
from cgrseg.deploy.web.service import PredictionQueue, Refused, Service
from cgrseg.deploy.web.uploads import Disconnected
from cgrseg.errors import CGRSegError, DataError, EnvironmentProblem
from cgrseg.extras import require_extra
from cgrseg.inference import Prediction, Predictor
from cgrseg.page import MEDIA_TYPES, class_table, page_files

Format = Literal["png", "json", "jpeg", "image"]
TYPES: dict[str, Format] = {
    "image/png": "png",
    "application/json": "json",
    "image/jpeg": "jpeg",
}
_JPEG_SIDE = 65_500
"""The encoder's limit, a little below the format's."""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "An image file (JPEG, PNG, WebP, BMP or TIFF), or a form with one.",
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_REFUSALS = {
    400: "Not an image, a damaged one, or an unknown model.",
    401: "The token is missing or wrong.",
    403: "A page of another site sent the request.",
    408: "The body arrived too slowly.",
    413: "Too many bytes or pixels.",
    421: "The request is for another host.",
    422: "A wrong parameter, or an image that the model cannot label.",
    503: "The queue is full, there was no answer in time, or the server is shutting down.",
    507: "The server lacks memory.",
}


def make_api(service: Service, queue: PredictionQueue) -> Any:
    """The application: page and API.

    Args:
        service: labels the images.
        queue: runs the predictions.

    Raises:
        EnvironmentProblem: packages are missing.
    """
    require_extra("web", "cgrseg web")
    from fastapi import FastAPI, Query, Request, responses
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    api = FastAPI(
        title="CGRSeg",
        version=__version__,
        summary="Semantic segmentation: every pixel of an image gets a class.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )

    def answer(error: Refused) -> Any:
        return responses.JSONResponse({"error": str(error)}, error.status)

    @api.exception_handler(CGRSegError)
    async def _refuse(_request: Request, error: CGRSegError) -> Any:
        return answer(_refusal(error))

    @api.exception_handler(Disconnected)
    async def _tell_nobody(_request: Request, _error: Disconnected) -> Any:
        return responses.Response(status_code=400)

    @api.exception_handler(Exception)
    async def _hide_trace(_request: Request, _error: Exception) -> Any:
        return answer(internal_error())  # the request filter logs the trace

    @api.exception_handler(RequestValidationError)
    async def _refuse_parameter(_request: Request, error: RequestValidationError) -> Any:
        first = error.errors()[0]
        where, found = ".".join(map(str, first["loc"])), str(first["msg"])[:200]
        return answer(
            Refused(422, where, found=found, expected="see /openapi.json", remedy="correct it")
        )

    @api.exception_handler(HTTPException)
    async def _refuse_address(_request: Request, error: HTTPException) -> Any:
        return answer(
            Refused(
                error.status_code,
                "request",
                found=str(error.detail),
                expected=f"POST {SEGMENT}, or an address of /openapi.json",
                remedy="correct the address or the method",
            )
        )

    @api.post(
        SEGMENT,
        summary="Segment an image",
        response_class=responses.Response,
        openapi_extra=_BODY,
        responses={
            200: {
                "description": "The label map as an indexed PNG, a summary as JSON, the image "
                "with the labels laid over it as JPEG, or that image alone (format=image), each at "
                "the image's own size.",
                "content": {kind: {} if kind == "application/json" else _BINARY for kind in TYPES},
            },
            **{status: {"description": text} for status, text in _REFUSALS.items()},
        },
    )
    async def segment(
        request: Request,
        model: Annotated[str | None, Query(description="Name from /v1/models.")] = None,
        format: Annotated[
            Format | None,
            Query(description="Format of the answer. Default: as the header Accept asks."),
        ] = None,
        opacity: Annotated[
            float, Query(ge=0, le=1, description="Opacity of the labels, for JPEG.")
        ] = 0.5,
        bands: Annotated[
            str,
            Query(
                max_length=1000,
                description="Three channels, with commas, that red, green and blue of a JPEG "
                "show, for models of other channels. Default: red, green and blue.",
            ),
        ] = "",
        ticket: Annotated[
            str, Query(max_length=64, description="Name of the request for /v1/queue.")
        ] = "",
    ) -> Any:
        wanted = format or _accepted(request.headers.get("accept", ""))
        data = await _image_bytes(request, service.limits.upload_bytes)
        shown = service.bands(model, bands)

        def work() -> bytes | dict[str, Any]:
            if wanted == "image":
                return _jpeg(service.picture(data, model, shown))
            found = service.segment(data, model)
            if wanted == "jpeg" and shown:
                found = replace(found, image=service.picture(data, model, shown))
            return _encoded(found, wanted, opacity)

        found = await _unless_disconnected(request, queue.run(work, ticket))
        if isinstance(found, dict):
            return responses.JSONResponse(found)
        return responses.Response(found, media_type=f"image/{'png' if wanted == 'png' else 'jpeg'}")

    @api.get("/v1/models", summary="Models with their classes, and the limits of the server")
    async def models() -> dict[str, Any]:
        limits = service.limits
        return {
            "models": [
                {
                    "name": name,
                    "classes": class_table(predictor.classes, predictor.palette),
                    **_channels(predictor),
                }
                for name, predictor in service.models.items()
            ],
            "limits": {
                "upload_bytes": limits.upload_bytes,
                "pixels": limits.pixels,
                "frames": limits.frames,
            },
        }

    @api.get("/v1/queue", summary="Length of the queue, and the place of a request")
    async def place(
        ticket: Annotated[str, Query(max_length=64, description="As sent to /v1/segment.")] = "",
    ) -> dict[str, int | None]:
        return {"length": len(queue), "place": queue.place(ticket) if ticket else None}

    def add_file(path: str, content: bytes, media_type: str) -> None:
        async def send() -> Any:
            return responses.Response(content, media_type=media_type)

        api.add_api_route(path, send, methods=["GET", "HEAD"], include_in_schema=False)

    # All files are read here, at the start: no request opens a file.
    for name, content in page_files("labels_from_server.js").items():
        media_type = MEDIA_TYPES[Path(name).suffix]
        add_file("/" if name == "index.html" else f"/{name}", content, media_type)
    return api


def _refusal(error: CGRSegError) -> Refused:
    """The answer to a request whose image cannot be labeled."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, DataError):
        return Refused(400, error)
    LOG.error("%s", error)  # not for the client: the message may name files of the server
    if isinstance(error, EnvironmentProblem):
        return Refused(
            507,
            "server",
            found="it lacks memory or something else for this image",
            expected="an answer",
            remedy="send a smaller image, or see the output of the server",
        )
    return Refused(
        422,
        "model",
        found="the model cannot label this image",
        expected="an image of a size that the model takes",
        remedy="send a smaller image, choose another model, or see the output of the server",
    )


def _accepted(accept: str) -> Format:
    """The format that the header `Accept` asks for first; a PNG where it asks for none of ours."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in TYPES:
            return TYPES[kind]
    return "png"


async def _image_bytes(request: Any, most: int) -> bytes:
    """The image of a request: the whole body, or the field `file` of a form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        body: bytes = await request.body()
        return body
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):
        # Nothing is written to a disk; the second is the name in older versions.
        spool_max_size = max_file_size = most + 1

    try:
        form = await InMemory(request.headers, request.stream(), max_files=1, max_fields=8).parse()
        file = form.get("file")
    except (MultiPartException, KeyError) as error:
        file = str(error)
    if file is None or isinstance(file, str):
        raise DataError(
            "form",
            found="no file in the field `file`" if file is None else file or "a damaged form",
            expected="one file in the field `file`",
            remedy="send it with `curl -F file=@image.jpg`",
        )
    content: bytes = file.file.read()
    return content


async def _unless_disconnected(request: Any, work: Any) -> Any:
    """The result of some work, which is cancelled when the client leaves."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(request.receive())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Disconnected
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # nobody is told of a late failure


def _encoded(prediction: Prediction, wanted: Format, opacity: float) -> bytes | dict[str, Any]:
    """A prediction as the answer; PNG and JPEG as bytes, JSON as a dictionary."""
    if wanted == "png":
        return encode_label_png(prediction.labels.astype(np.uint8), prediction.palette)
    if wanted == "json":
        return _summary(prediction)
    return _jpeg(prediction.overlay(opacity))


def _channels(predictor: Predictor) -> dict[str, Any]:
    """Names of the channels of a model, and of those that red, green and blue show."""
    channels = predictor.test.image_channels
    if channels is None or channels.names is None:
        return {}
    names = channels.names
    return {"channels": names, "shown": [names[k] for k in channels.rgb_indices or (0, 0, 0)]}


def _jpeg(image: Image) -> bytes:
    height, width, _ = image.shape
    if max(height, width) > _JPEG_SIDE:
        raise DataError(
            "overlay",
            found=f"{width}x{height} pixels",
            expected=f"at most {_JPEG_SIDE} in width and height, as JPEG has",
            remedy="request a PNG or JSON, or make the image smaller",
        )
    done, content = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]))
    assert done  # an array of ours always has a form that can be encoded
    return content.tobytes()


def _summary(prediction: Prediction) -> dict[str, Any]:
    """Size, and every class that occurs with its number of pixels, largest first."""
    height, width = prediction.labels.shape
    counts = np.bincount(prediction.labels.ravel(), minlength=len(prediction.classes))
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return {
        "width": width,
        "height": height,
        "classes": [
            {
                "id": k,
                "name": prediction.classes[k],
                "color": list(prediction.palette[k]),
                "pixels": int(counts[k]),
                "share": float(counts[k]) / (height * width),
            }
            for k in order
        ],
    }
