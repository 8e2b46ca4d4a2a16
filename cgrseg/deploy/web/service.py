"""Prediction for several visitors at once, within limits on bytes, pixels and time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path

from cgrseg.data.image_io import read_image
from cgrseg.deploy.web.headers import decoded_size
from cgrseg.errors import CGRSegError, DataError, explain
from cgrseg.inference import Prediction, Predictor
from cgrseg.inference.exported import ExportedBackend
from cgrseg.inference.views import Image, network_size


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Attributes:
        upload_bytes: of one file.
        pixels: of one photo, told from its header before anything is decoded.
        seconds: from a request to its answer, waiting included.
        waiting: requests at once; more are sent away.
        network_pixels: of the network's input; a larger one is done in windows.
    """

    upload_bytes: int = 20 << 20
    pixels: int = 40_000_000
    seconds: float = 60.0
    waiting: int = 16
    network_pixels: int = 2_000_000

    @property
    def kept_bytes(self) -> int:
        """Of all uploads that lie on the disk or are arriving, which count as both."""
        return max(16, 2 * self.waiting) * self.upload_bytes


_NO_PHOTO = explain(
    "upload",
    found="a file that is no photo, or a damaged one",
    expected="JPEG, PNG, WebP, BMP or TIFF",
    remedy="choose another file, or save the photo again as JPEG",
)


class BusyError(CGRSegError):
    """Too many requests, or one that takes too long."""


class Service:
    """Predictors by name, one prediction at a time.

    The machine is used fully by one prediction; more at once would only take turns and
    memory.

    Args:
        models: predictors by the name under which they are offered; at least one.
        limits: of every request.
    """

    def __init__(self, models: Mapping[str, Predictor], limits: Limits) -> None:
        self.models = dict(models)
        self.limits = limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._lock = threading.Lock()
        self._pending = 0

    def predict(self, photo: Path, model: str) -> Prediction:
        """Label one uploaded photo.

        Args:
            photo: the file.
            model: one of the names.

        Raises:
            DataError: no photo, a damaged one, or one beyond the limits.
            BusyError: too many requests, or no answer in time.
        """
        if model not in self.models:
            raise DataError(
                explain(
                    "model",
                    found=repr(model)[:80],
                    expected=", ".join(self.models),
                    remedy="choose from these",
                )
            )
        size = self.check(photo)
        with self._lock:
            if self._pending >= self.limits.waiting:
                raise BusyError(
                    explain(
                        "server",
                        found=f"{self._pending} requests are waiting already",
                        expected=f"at most {self.limits.waiting}",
                        remedy="try again in a minute",
                    )
                )
            self._pending += 1
        work = self._worker.submit(self._label, photo, size, self.models[model])
        work.add_done_callback(self._finished)
        try:
            return work.result(timeout=self.limits.seconds)
        except FutureTimeoutError as error:
            work.cancel()  # if it has not begun; what has begun is bounded by the limits
            raise BusyError(
                explain(
                    "server",
                    found=f"no answer within {self.limits.seconds:g} seconds",
                    expected="a prediction in that time, waiting included",
                    remedy="try again later, or with a smaller photo",
                )
            ) from error

    def check(self, photo: Path) -> tuple[int, int]:
        """Refuse what is no photo, or too large a one, by its header alone.

        Returns:
            Width and height.

        Raises:
            DataError: saying which.
        """
        from PIL import Image as Pillow

        size = photo.stat().st_size
        if size > self.limits.upload_bytes:
            raise DataError(too_many_bytes(f"{size / 1e6:.1f} MB", self.limits))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
                width, height, room = decoded_size(photo)
        except Pillow.DecompressionBombError as error:
            raise DataError(self._too_many_pixels("more pixels than any photo has")) from error
        except Exception as error:  # damaged headers fail in many ways
            raise DataError(_NO_PHOTO) from error
        if room > self.limits.pixels:
            raise DataError(self._too_many_pixels(f"{width}x{height} pixels"))
        return width, height

    def close(self) -> None:
        """Take no more requests."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _too_many_pixels(self, found: str) -> str:
        return explain(
            "upload",
            found=found,
            expected=f"at most {self.limits.pixels / 1e6:g} megapixels",
            remedy="make the photo smaller",
        )

    def _label(self, photo: Path, size: tuple[int, int], predictor: Predictor) -> Prediction:
        try:
            image = read_image(photo)
        except DataError as error:
            # The visitor knows the file by another name than the server's.
            raise DataError(str(error).replace(str(photo), "upload")) from error
        if sorted(image.shape[:2]) != sorted(size):  # a header that was understood wrongly
            raise DataError(_NO_PHOTO)
        found: Prediction = self._bounded(predictor, image)(image)
        return found

    def _bounded(self, predictor: Predictor, image: Image) -> Predictor:
        """The predictor, with windows where the whole photo would take too much memory."""
        fixed = isinstance(predictor.backend, ExportedBackend) and (
            predictor.backend.sizes is not None or predictor.backend.description.gives == "labels"
        )
        height, width = network_size(image, predictor.test)
        if fixed or height * width <= self.limits.network_pixels:
            return predictor
        windows = predictor.test.model_copy(update={"mode": "slide"})
        return Predictor(predictor.backend, windows, predictor.classes, predictor.palette)

    def _finished(self, work: Future[Prediction]) -> None:
        with self._lock:
            self._pending -= 1


def too_many_bytes(found: str, limits: Limits) -> str:
    """The message for a file that is too large."""
    return explain(
        "upload",
        found=found,
        expected=f"at most {limits.upload_bytes / 1e6:.1f} MB",
        remedy="make the photo smaller, or save it as JPEG",
    )
