"""Queue of predictions: one at a time, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from cgrseg.deploy.web.service import Limits, Refused
from cgrseg.errors import explain

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Entry:
    ticket: str
    work: Future[Any]


class PredictionQueue:
    """Runs predictions one after another in a thread.

    One prediction uses the whole machine; several at once would only share it and need more
    memory.

    Args:
        limits: `waiting` bounds the length, `seconds` the time of one request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        """Number of requests that wait or are computed."""
        self._entries = [entry for entry in self._entries if not entry.work.done()]
        return len(self._entries)

    def place(self, ticket: str) -> int | None:
        """Place of a request: 0 while it is computed, 1 if it is next; None: not in the queue."""
        tickets = [entry.ticket for entry in self._entries if not entry.work.done()]
        return tickets.index(ticket) if ticket in tickets else None

    def check_room(self) -> None:
        """Refuse a request that the queue has no place for.

        Raises:
            Refused: the queue is full.
        """
        if len(self) >= self._limits.waiting:
            raise Refused(
                503,
                explain(
                    "server",
                    found=f"{len(self)} requests are waiting already",
                    expected=f"at most {self._limits.waiting}",
                    remedy="try again in a minute",
                ),
            )

    async def run(self, work: Callable[[], Result], ticket: str = "") -> Result:
        """Run a function when its turn comes.

        A request that is cancelled leaves the queue; one that is being computed ends by itself,
        and keeps its place until then.

        Args:
            work: function without arguments.
            ticket: name of the request for :meth:`place`.

        Raises:
            Refused: the queue is full, or the time is over.
        """
        self.check_room()
        future = self._worker.submit(work)
        self._entries.append(_Entry(ticket, future))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limits.seconds)
        except asyncio.TimeoutError as error:
            raise Refused(
                503,
                explain(
                    "server",
                    found=f"no answer within {self._limits.seconds:g} seconds",
                    expected="a prediction in that time, queueing included",
                    remedy="try again later, or with a smaller image",
                ),
            ) from error

    def close(self) -> None:
        """Cancel all requests that wait."""
        self._worker.shutdown(wait=False, cancel_futures=True)
