"""A coordinator in a thread of this process, where tests and benchmarks need no Ray."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, TypeVar

from raysearch.backend.coordinator import Coordinator, CoordinatorClient

P = ParamSpec("P")
T = TypeVar("T")


class LocalCoordinator(CoordinatorClient):
    """The real `Coordinator` on an event loop of its own."""

    def __init__(self) -> None:
        self.coordinator = Coordinator()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def submit(
        self, method: Callable[Concatenate[Coordinator, P], Awaitable[T]], *args: P.args, **named: P.kwargs
    ) -> "Future[T]":
        """Start a call and return its future."""

        async def run() -> Any:
            return await method(self.coordinator, *args, **named)

        return asyncio.run_coroutine_threadsafe(run(), self._loop)
