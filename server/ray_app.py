"""`pellucid-ray`, and the application `server.ray_app:app`: the same services on many replicas, by Ray Serve.

Ray is imported where it is used only, so that this package does not need it.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from analyzers import cli
from analyzers.errors import PellucidError
from server.client import Client
from server.layout import FILE
from server.logs import write_log
from server.ray_edge import SERVICER_FUNCTION
from server.ray_replica import Replica
from server.ray_settings import PROGRAM, RaySettings

if TYPE_CHECKING:
    from ray.serve import Application

log = logging.getLogger("pellucid.ray")

NAME = "pellucid"
DRAIN_POLL_SECONDS = 0.2
FIRST_ANSWER_SECONDS = 120.0  # a proxy finds its replicas at its first call, which on a busy machine took 14 s
QUIET = {"enable_access_log": False}  # a line per call is what a busy server spends its time on


class RayError(PellucidError):
    """Ray, or the application on it, did not start."""


def app(arguments: dict[str, Any]) -> Application:
    """Return the application, for `serve run` and configuration files.

    Args:
        arguments: settings by name; what is not among them comes from `PELLUCID_...` in the environment.

    Raises:
        ValidationError: a setting is unknown, missing or out of range.
    """
    return application(RaySettings(**arguments))


def application(settings: RaySettings) -> Application:
    """Return the application with these settings."""
    from ray import serve

    autoscaling = {
        "min_replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.target_ongoing_requests,
    }
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas:
        size = {"autoscaling_config": autoscaling}
    deployment = serve.deployment(
        name="Pellucid",
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_requests,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        graceful_shutdown_timeout_s=settings.grace_seconds,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_SECONDS,
        logging_config=QUIET,
        max_constructor_retry_count=1,  # a repository that cannot be used now cannot be used by the next replica
        **size,
    )(Replica)
    started: Application = deployment.bind(settings.of_replica())
    return started


def serve_until_stopped(settings: RaySettings, announce: Callable[[str], None]) -> None:
    """Start Ray or join a cluster, serve until SIGINT or SIGTERM, let replicas finish what they have, and return.

    Args:
        settings: all settings.
        announce: called once with "HOST:PORT", when every replica is ready and has been reached.

    Raises:
        RayError: Ray is not installed, a port is taken, there is no repository, or no replica became ready.
        ServerError: the proxy does not reach the replicas.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # as in ONNX Runtime: nothing is reported home
    if importlib.util.find_spec("ray") is None:
        raise RayError('Ray is not installed; pip install "pellucid[ray,server,cpu]"')
    if not settings.ray_address:
        _check_here(settings)
    stop = threading.Event()
    _start_ray(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        _deploy(settings)
        if not settings.ray_address:  # a cluster's proxies may be on other machines
            with Client(f"127.0.0.1:{settings.port}") as client:
                client.wait_until_ready(FIRST_ANSWER_SECONDS)
        announce(f"127.0.0.1:{settings.port}")
        stop.wait()
        log.info("stopping; running requests have %.3g s to finish", settings.grace_seconds)
    finally:
        _stop_ray(settings)


def _check_here(settings: RaySettings) -> None:
    """Find out at once what Ray on this machine would stumble over after a while."""
    if not settings.repository.is_dir():
        raise RayError(f"there is no folder {settings.repository}; expected NAME/VERSION/{FILE} files below it")
    for port in (settings.port, settings.http_port):
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                raise RayError(f"cannot listen on port {port}; it is taken") from None


def _deploy(settings: RaySettings) -> None:
    """Start Ray Serve and wait until every replica is ready."""
    from ray import serve
    from ray.exceptions import RayError as Failed

    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": "127.0.0.1", "port": settings.http_port},
            grpc_options={
                "port": settings.port,
                "grpc_servicer_functions": [SERVICER_FUNCTION],
                "enable_reflection": False,  # ours knows the Open Inference Protocol too
            },
            logging_config=QUIET,
        )
        serve.run(application(settings), name=NAME)
    except (RuntimeError, Failed) as error:
        raise RayError(f"the application did not start: {_reason(error)[:300]}") from None


def _reason(error: Exception) -> str:
    """Return the last line of what a replica said, or else of the error itself: the others are where it happened."""
    from ray import serve

    application = serve.status().applications.get(NAME)
    said = [] if application is None else [status.message for status in application.deployments.values()]
    lines = [line.strip() for text in (str(error), *said) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _start_ray(settings: RaySettings) -> None:
    import ray

    common: dict[str, Any] = {"configure_logging": False, "log_to_driver": True}
    if settings.ray_address:
        ray.init(address=settings.ray_address, **common)
        return
    cores = math.ceil(settings.most_replicas * settings.cpus_per_replica)
    if cores > (os.cpu_count() or 1):
        log.warning("replicas are given %d cores together, this machine has %d", cores, os.cpu_count())
    ray.init(
        address="local",
        num_cpus=max(1, cores),
        include_dashboard=False,
        object_store_memory=settings.object_store_bytes,
        _temp_dir=None if settings.ray_folder is None else str(settings.ray_folder),
        **common,
    )


def _stop_ray(settings: RaySettings) -> None:
    """Stop what was started here: on a cluster of somebody else's only our application."""
    import ray
    from ray import serve

    serve.delete(NAME)  # replicas finish what they have while the proxies are still there to pass it on
    if not settings.ray_address:
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def main(arguments: list[str] | None = None) -> int:
    """Run the application until it is told to stop and return the exit code."""
    try:
        settings = CliApp.run(RaySettings, cli_args=sys.argv[1:] if arguments is None else arguments)
    except ValidationError as error:
        for problem in error.errors():
            name = "--" + ".".join(map(str, problem["loc"])).replace("_", "-")
            print(f"{PROGRAM}: error: {name}: {problem['msg']}; see --help", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    write_log(settings.log_level, settings.log_format)
    return cli.run(PROGRAM, lambda: serve_until_stopped(settings, _announce))


def _announce(address: str) -> None:
    print(f"listening on {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
