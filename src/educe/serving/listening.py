"""Listening: a socket before anything slow begins, and an application that answers on it."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

from educe.errors import BlockedError


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        BlockedError: The port is in use, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BlockedError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --port"
        ) from error


def serve(app: Starlette, at: socket.socket, *, grace: int) -> None:
    """Answer on a socket until it is interrupted, and then for ``grace`` seconds at most."""
    config = uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=grace
    )
    uvicorn.Server(config).run(sockets=[at])
