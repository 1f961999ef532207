"""grpc.health.v1: whether each service takes calls; watchers end when the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable

from grpc_health.v1 import health_pb2 as pb

from server.errors import UnknownServiceError

SERVICE: str = pb.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """Knows the status of each service; lives on one event loop.

    Args:
        services: their names; the empty one, the server as a whole, is always there.
    """

    def __init__(self, *services: str) -> None:
        self._services = {"", *services}
        self._serving = True
        self._closed = False
        self._changed = asyncio.Condition()

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Say whether a service takes calls.

        Raises:
            UnknownServiceError: there is no such service.
        """
        if request.service not in self._services:
            raise UnknownServiceError(f"service: there is no '{request.service[:80]}'; there are {self._known()}")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def watch(self, requests: AsyncIterable[bytes]) -> AsyncGenerator[pb.HealthCheckResponse]:
        """Say it now, and again whenever it changes, until the server has stopped."""
        async for data in requests:
            service = pb.HealthCheckRequest.FromString(data).service
            break
        else:
            return
        said = None
        while not self._closed:
            if said != (status := self._status(service)):
                yield pb.HealthCheckResponse(status=status)
                said = status
            async with self._changed:
                if not self._closed and said == self._status(service):
                    await self._changed.wait()

    async def stop_serving(self) -> None:
        """Say from now on that no service takes calls."""
        await self._change(serving=False)

    async def close(self) -> None:
        """End the watchers."""
        await self._change(closed=True)

    async def _change(self, *, serving: bool | None = None, closed: bool = False) -> None:
        async with self._changed:
            self._serving = self._serving if serving is None else serving
            self._closed = closed
            self._changed.notify_all()

    def _known(self) -> str:
        return ", ".join(f"'{name}'" for name in sorted(self._services))

    def _status(self, service: str) -> pb.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        return pb.HealthCheckResponse.SERVING if self._serving else pb.HealthCheckResponse.NOT_SERVING
