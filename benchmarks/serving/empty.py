"""A server that does nothing: whatever it is asked at `/empty.Empty/N`, it answers the same N bytes at once.

It is made as ours is, of gRPC's asyncio server on uvloop, so that its time a call is the part of ours that gRPC for
Python takes. Run as a process of its own, with the port and the number of processes as arguments.
"""

from __future__ import annotations

import subprocess
import sys

import grpc
import uvloop


class Empty(grpc.GenericRpcHandler):
    """Answers every method."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return a handler that answers as many bytes as the method's name says."""
        answer = bytes(int(handler_call_details.method.rsplit("/", 1)[1]))

        async def handle(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)


async def serve(port: str) -> None:
    """Answer until the process is ended."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Empty(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main(port: str, processes: int) -> None:
    """Answer in this process and in as many others as it takes; whoever started this one ends them all."""
    for _ in range(processes - 1):
        subprocess.Popen([sys.executable, "-m", "benchmarks.serving.empty", port, "1"])
    uvloop.run(serve(port))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
