"""Who may come in: addresses to listen at, and requests that come from the page itself."""

import errno
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Call = Callable[..., Awaitable[Any]]

LOCAL = ("127.0.0.1", "localhost", "::1")


def free_port(host: str, port: int) -> int:
    """The port, any that is free for 0; OSError, with what to do, if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"--port must be free at {host}, got {port}: choose another, or 0 for any") from error
            if error.errno == errno.EACCES:
                raise OSError(f"--port must be allowed to you, got {port}: choose one from 1024 on") from error
            raise OSError(f"--host must be an address of this machine, got {host}: 127.0.0.1, say") from error
        return int(probe.getsockname()[1])


class SameOrigin:
    """Middleware that answers the page itself and no other: names that merely lead here, and other sites' scripts.

    A site that someone has open elsewhere could otherwise send requests to this machine, under its own name (Origin) or
    under one that it lets point here (Host, DNS rebinding).

    Args:
        app: what is guarded.
        host: that the server listens at. Where that is this machine alone, so are the names it may be called by.
        names: further ones, such as a proxy's.
    """

    def __init__(self, app: Call, host: str, names: Sequence[str] = ()):
        self.app = app
        self.host = host
        self.names = names

    async def __call__(self, scope: Scope, receive: Call, send: Call) -> None:
        """Pass on, or answer 403."""
        if scope["type"] not in ("http", "websocket") or self.is_own(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"requests must come from the page itself"})

    def is_own(self, scope: Scope) -> bool:
        """Whether the names in a request's headers are the page's."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.host in LOCAL and urlsplit(f"//{host}").hostname not in (*LOCAL, *self.names):
            return False
        return origin is None or urlsplit(origin).netloc == host or urlsplit(origin).hostname in self.names
