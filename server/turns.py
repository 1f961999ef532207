"""Turns: how many requests of streams are under way, so that they leave room for calls with one request each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """Room that streams share; they take it one by one, first come first served. Lives on one event loop.

    Args:
        most: requests at a time while nobody else asks.
        least: requests at a time beside others.
        crowded: whether others ask.
    """

    def __init__(self, most: int, least: int, crowded: Callable[[], bool] = lambda: False) -> None:
        self._most = most
        self._least = least
        self._crowded = crowded
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait until it is our turn; to be given back."""
        if not self._waiting and self._free():
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given to us in this very moment
                self.give_back()
            raise

    def give_back(self) -> None:
        """Let the next ones have it."""
        self._taken -= 1
        while self._waiting and self._free():
            turn = self._waiting.popleft()
            if not turn.done():  # whoever waited for it has not left
                self._taken += 1
                turn.set_result(None)

    def _free(self) -> bool:
        return self._taken < (self._least if self._crowded() else self._most)
