"""Label uploaded images, within limits on bytes, pixels and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cgrseg.data.image_files import decode_image
from cgrseg.deploy.web.image_header import decoded_size
from cgrseg.errors import CGRSegError, ConfigError, DataError, explain
from cgrseg.inference import Prediction, Predictor
from cgrseg.inference.views import Image, network_size
from cgrseg.surroundings import raise_machine_problem


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
    pixels: int = 40_000_000
    seconds: float = 60.0
    waiting: int = 16
    frames: int = 600
    network_pixels: int = 2_000_000
    stall_seconds: float = 10.0
    connections: int = 1024


class Refused(CGRSegError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


_NO_IMAGE = explain(
    "upload",
    found="a file that is not an image, or a damaged one",
    expected="JPEG, PNG, WebP, BMP or TIFF",
    remedy="choose another file, or save the image again as JPEG",
)
_MOST_CLASSES = 256  # of an indexed PNG


class Service:
    """Predictors by name, and the limits under which they work for anybody.

    Args:
        models: predictors by the name under which they are offered; at least one.
        limits: limits of every request.

    Raises:
        ConfigError: a model has more classes than an indexed PNG can hold.
    """

    def __init__(self, models: Mapping[str, Predictor], limits: Limits) -> None:
        self.models = dict(models)
        self.limits = limits
        for name, predictor in self.models.items():
            if len(predictor.classes) > _MOST_CLASSES:
                raise ConfigError(
                    name,
                    found=f"{len(predictor.classes)} classes",
                    expected=f"at most {_MOST_CLASSES}, which is what an indexed PNG holds",
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

    def check(self, data: bytes) -> tuple[int, int]:
        """Refuse what is not an image, or too large an image, by the header alone.

        Returns:
            Width and height.

        Raises:
            Refused: too many bytes or pixels.
            DataError: not an image.
        """
        if len(data) > self.limits.upload_bytes:
            raise Refused(413, too_many_bytes(f"{len(data) / 1e6:.1f} MB", self.limits))
        try:
            width, height, room = decoded_size(data)
        except Exception as error:  # damaged headers fail in many ways
            raise_machine_problem(error, "upload")
            raise DataError(_NO_IMAGE) from error
        if room > self.limits.pixels:
            raise Refused(
                413,
                explain(
                    "upload",
                    found=f"{width}x{height} pixels",
                    expected=f"at most {self.limits.pixels / 1e6:g} megapixels",
                    remedy="make the image smaller",
                ),
            )
        return width, height

    def segment(self, data: bytes, model: str | None = None) -> Prediction:
        """Label one image.

        Args:
            data: content of the image file.
            model: one of the names; None: the first one.

        Raises:
            Refused: too many bytes or pixels.
            DataError: not an image, a damaged one, or no such model.
            EnvironmentProblem: too little memory.
        """
        predictor = self.predictor(model)
        size = self.check(data)
        image = decode_image(data, "upload", bits=predictor.test.image_bits)
        if sorted(image.shape[:2]) != sorted(size):  # the header was misunderstood
            raise DataError(_NO_IMAGE)
        try:
            found: Prediction = self._bounded(predictor, image)(image)
        except Exception as error:
            raise_machine_problem(error, "prediction")
            raise
        return found

    def _bounded(self, predictor: Predictor, image: Image) -> Predictor:
        """The predictor, with sliding windows where the whole image would need too much memory."""
        fixed = predictor.backend.sizes is not None or predictor.backend.output == "labels"
        height, width = network_size(image, predictor.test)
        if fixed or height * width <= self.limits.network_pixels:
            return predictor
        windows = predictor.test.model_copy(update={"mode": "slide"})
        return Predictor(predictor.backend, windows, predictor.classes, predictor.palette)


def too_many_bytes(found: str, limits: Limits) -> str:
    """The message for a file that is too large."""
    return explain(
        "upload",
        found=found,
        expected=f"at most {limits.upload_bytes / 1e6:.1f} MB",
        remedy="make the image smaller, or save it as JPEG",
    )
