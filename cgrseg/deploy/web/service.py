"""Label uploaded images within limits on bytes, pixels, memory and time, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cgrseg.data.channels import Pixels, as_picture, decode_pixels
from cgrseg.deploy.web.image_header import decoded_size
from cgrseg.errors import CGRSegError, ConfigError, DataError
from cgrseg.inference import Prediction, Predictor
from cgrseg.inference.views import network_size
from cgrseg.page import MAX_CLASSES, MAX_FRAMES, MAX_INPUT_PIXELS, MAX_PIXELS
from cgrseg.surroundings import raise_machine_problem

Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        upload_bytes: maximum size of one image file.
        pixels: maximum number of pixels of one image, read from its header before decoding.
        seconds: maximum time to receive an image, and to answer it, queueing included.
        waiting: maximum number of requests that wait or are computed; more are refused.
        frames: maximum number of frames that the page labels for one video.
        network_pixels: maximum size of the network's input; larger images use sliding windows.
        stall_seconds: maximum pause of a sender, and time for the header of a request.
        connections: maximum number of open connections, where the system allows as many.
    """

    upload_bytes: int = 20 << 20
    pixels: int = MAX_PIXELS
    seconds: float = 60.0
    waiting: int = 16
    frames: int = MAX_FRAMES
    network_pixels: int = MAX_INPUT_PIXELS
    stall_seconds: float = 10.0
    connections: int = 1024


class Refused(CGRSegError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, where: object, **parts: str) -> None:
        super().__init__(where, **parts)
        self.status = status


def too_many_bytes(found: str, limits: Limits) -> Refused:
    """The refusal of a file that is too large."""
    return Refused(
        413,
        "upload",
        found=found,
        expected=f"at most {limits.upload_bytes / 1e6:.1f} MB",
        remedy="make the image smaller, or save it as JPEG",
    )


class Service:
    """Predictors by name, and the limits of every request.

    Args:
        models: predictors by the name that the page shows; at least one.
        limits: limits of every request.

    Raises:
        ConfigError: a model has more classes than an indexed PNG can hold.
    """

    def __init__(self, models: Mapping[str, Predictor], limits: Limits) -> None:
        self.models = dict(models)
        self.limits = limits
        for name, predictor in self.models.items():
            if len(predictor.classes) > MAX_CLASSES:
                raise ConfigError(
                    name,
                    found=f"{len(predictor.classes)} classes",
                    expected=f"at most {MAX_CLASSES}, which is what an indexed PNG holds",
                    remedy="use `cgrseg.Predictor` from Python",
                )

    def predictor(self, model: str | None) -> Predictor:
        """The predictor of a name; None: the first one.

        Raises:
            DataError: there is no such model.
        """
        name = next(iter(self.models)) if model is None else model
        if name not in self.models:
            raise DataError(
                "model",
                found=repr(name[:80]),
                expected=", ".join(self.models),
                remedy="choose one of these names",
            )
        return self.models[name]

    def bands(self, model: str | None, names: str) -> list[int] | None:
        """Indices of three channels by their names with commas; empty: None.

        Raises:
            DataError: no such channels, or not three.
        """
        if not names:
            return None
        channels = self.predictor(model).test.image_channels
        known = (channels and channels.names) or []
        given = names.split(",")
        if len(given) != 3 or not set(given) <= set(known):
            raise DataError(
                "bands",
                found=repr(names[:200]),
                expected=f"three of {', '.join(known)}" if known else "none: the model takes RGB",
                remedy="name the channels that red, green and blue are to show",
            )
        return [known.index(name) for name in given]

    def picture(
        self, data: bytes, model: str | None = None, bands: Sequence[int] | None = None
    ) -> NDArray[np.uint8]:
        """An image as RGB (H, W, 3), for people; arguments and errors as of :meth:`segment`."""
        channels = self.predictor(model).test.image_channels
        image = self._decoded(data, model)
        try:
            return as_picture(image, channels, bands)
        except Exception as error:
            raise_machine_problem(error, "picture")
            raise

    def segment(self, data: bytes, model: str | None = None) -> Prediction:
        """Label one image.

        Args:
            data: content of the image file.
            model: name of the model; None: the first one.

        Raises:
            Refused: too many bytes or pixels.
            DataError: not an image, a damaged one, or no such model.
            EnvironmentProblem: too little memory.
        """
        predictor, image = self.predictor(model), self._decoded(data, model)
        try:
            found: Prediction = self._bounded(predictor, image)(image)
        except Exception as error:
            raise_machine_problem(error, "prediction")
            raise
        return found

    def _decoded(self, data: bytes, model: str | None) -> Pixels:
        test = self.predictor(model).test
        channels = test.image_channels
        values = None
        if channels is not None:
            sizes = [np.dtype(kind).itemsize for kind in channels.types or ["float32"]]
            values = len(channels.names or []) * max(sizes)
        size = self.check(data, values=values)
        image = decode_pixels(data, "upload", test)
        if sorted(image.shape[:2]) != sorted(size):  # the header was misunderstood
            raise _not_an_image()
        return image

    def check(self, data: bytes, *, values: int | None = None) -> tuple[int, int]:
        """Width and height of an image by its header, before anything is decoded.

        Images of more than three bytes per pixel (`values`; None: 8-bit RGB) may have fewer pixels.

        Raises:
            Refused: too many bytes or pixels.
            DataError: not an image.
        """
        if len(data) > self.limits.upload_bytes:
            raise too_many_bytes(f"{len(data) / 1e6:.1f} MB", self.limits)
        try:
            width, height, room = decoded_size(data, any_bands=values is not None)
        except Exception as error:  # damaged headers fail in many ways
            raise_machine_problem(error, "upload")
            raise _not_an_image() from error
        most = self.limits.pixels * 3 // max(3, values or 3)
        if room > most:
            raise Refused(
                413,
                "upload",
                found=f"{width}x{height} pixels",
                expected=f"at most {most / 1e6:g} megapixels",
                remedy="make the image smaller",
            )
        return width, height

    def _bounded(self, predictor: Predictor, image: Pixels) -> Predictor:
        """The predictor, with sliding windows where the whole image would need too much memory."""
        fixed = predictor.backend.sizes is not None or predictor.backend.output == "labels"
        height, width = network_size(image, predictor.test)
        if fixed or height * width <= self.limits.network_pixels:
            return predictor
        windows = predictor.test.model_copy(update={"mode": "slide"})
        return Predictor(predictor.backend, windows, predictor.classes, predictor.palette)


def _not_an_image() -> DataError:
    return DataError(
        "upload",
        found="a file that is not an image, or a damaged one",
        expected="JPEG, PNG, WebP, BMP or TIFF",
        remedy="choose another file, or save the image again as JPEG",
    )


class PredictionQueue:
    """Queue of predictions: one at a time in a thread, first come, first served.

    One prediction uses the whole machine; several at once would share it and need more memory.

    Args:
        limits: `waiting` bounds the length, `seconds` the time of one request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._entries: list[tuple[str, Future[Any]]] = []

    def _tickets(self) -> list[str]:
        self._entries = [(ticket, work) for ticket, work in self._entries if not work.done()]
        return [ticket for ticket, _ in self._entries]

    def __len__(self) -> int:
        """Number of requests that wait or are computed."""
        return len(self._tickets())

    def place(self, ticket: str) -> int | None:
        """Place of a request: 0 while it is computed, 1 if it is next; None: not in the queue."""
        tickets = self._tickets()
        return tickets.index(ticket) if ticket in tickets else None

    def check_room(self) -> None:
        """Refuse a request when the queue is full.

        Raises:
            Refused: the queue is full.
        """
        if len(self) >= self._limits.waiting:
            raise Refused(
                503,
                "server",
                found=f"{len(self)} requests are waiting already",
                expected=f"at most {self._limits.waiting}",
                remedy="try again in a minute",
            )

    async def run(self, work: Callable[[], Result], ticket: str = "") -> Result:
        """Run a function when its turn comes.

        A request that is cancelled leaves the queue. If it is being computed, it keeps its place
        until the computation ends.

        Args:
            work: function without arguments.
            ticket: name of the request for :meth:`place`.

        Raises:
            Refused: the queue is full, or the time is over.
        """
        self.check_room()
        future = self._worker.submit(work)
        self._entries.append((ticket, future))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limits.seconds)
        except asyncio.TimeoutError as error:
            raise Refused(
                503,
                "server",
                found=f"no answer within {self._limits.seconds:g} seconds",
                expected="a prediction in that time, queueing included",
                remedy="try again later, or with a smaller image",
            ) from error

    def close(self) -> None:
        """Cancel all requests that wait."""
        self._worker.shutdown(wait=False, cancel_futures=True)
