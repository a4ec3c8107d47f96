"""Network safety: check the listening address, and reject requests that do not come from the page itself."""

import errno
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
ASGICallable = Callable[..., Awaitable[Any]]

# Gradio's page has scripts in its text, and makes functions of strings.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'"
LOCAL = ("127.0.0.1", "localhost", "::1")


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; raise OSError with a remedy if it cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    f"--port {port} is in use at {host}: choose another port, or 0 for any free one"
                ) from error
            if error.errno == errno.EACCES:
                raise OSError(f"--port {port} needs special permission: choose 1024 or higher") from error
            raise OSError(f"--host must be an address of this machine, got {host}: use 127.0.0.1") from error
        return int(probe.getsockname()[1])


class SameOrigin:
    """ASGI middleware that answers only requests from the page itself, which may load nothing from other servers.

    All other requests are rejected with 403.

    Another site that a visitor has open could otherwise send requests to this machine, either under its own name
    (Origin) or under a name that it resolves to this machine (Host, DNS rebinding).

    Args:
        app: application to protect.
        host: address that the server listens on. For a local address, only local host names are accepted.
        names: additional accepted host names, such as a proxy's.
    """

    def __init__(self, app: ASGICallable, host: str, names: Sequence[str] = ()):
        self.app = app
        self.host = host
        self.names = names

    async def __call__(self, scope: Scope, receive: ASGICallable, send: ASGICallable) -> None:
        """Forward the request to the application, or answer 403."""
        if scope["type"] not in ("http", "websocket") or self.allows(scope):
            await self.app(scope, receive, _with_policy(send) if scope["type"] == "http" else send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await reject(send, 403, "requests must come from the page itself")

    def allows(self, scope: Scope) -> bool:
        """Return whether the Host and Origin headers belong to the page."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self.host in LOCAL and urlsplit(f"//{host}").hostname not in (*LOCAL, *self.names):
            return False
        return origin is None or urlsplit(origin).netloc == host or urlsplit(origin).hostname in self.names


def _with_policy(send: ASGICallable) -> ASGICallable:
    """Return a function that sends the same answer, with a policy that lets the page load from this server only."""

    async def send_with_policy(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
        await send(message)

    return send_with_policy


async def reject(send: ASGICallable, status: int, reason: str) -> None:
    """Answer a request with an error status and a line of text."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": reason.encode()})
