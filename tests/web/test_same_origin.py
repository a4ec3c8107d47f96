"""Addresses to listen at, and rejection of requests that do not come from the page itself."""

import asyncio
import socket

import pytest

from asyncdiff.web.same_origin import POLICY, SameOrigin, free_port


def test_unusable_addresses_are_rejected():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=f"--port {port} is in use at 127.0.0.1: choose another port, or 0 for any free one"
        ):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(OSError, match=r"--host must be an address of this machine, got 192\.0\.2\.1: use 127\.0\.0\.1"):
        free_port("192.0.2.1", 7860)


async def nothing(*_):
    """ASGI application that does nothing."""


PROXY = ["lab.example"]


@pytest.mark.parametrize(
    ("listens", "names", "host", "origin", "own"),
    [
        ("127.0.0.1", [], "127.0.0.1:7860", None, True),
        ("127.0.0.1", [], "localhost:7860", "http://localhost:7860", True),
        ("::1", [], "[::1]:7860", "http://[::1]:7860", True),
        ("127.0.0.1", [], "127.0.0.1:7860", "http://evil.example", False),
        ("127.0.0.1", [], "127.0.0.1:7860", "http://127.0.0.1:8000", False),  # another server on this machine
        ("127.0.0.1", [], "127.0.0.1:7860", "null", False),
        ("127.0.0.1", [], "evil.example:7860", None, False),  # DNS rebinding
        ("127.0.0.1", [], "evil.example:7860", "http://evil.example:7860", False),
        ("0.0.0.0", [], "lab.example:7860", "http://lab.example:7860", True),
        ("0.0.0.0", [], "lab.example", "https://lab.example", True),  # behind a proxy
        ("0.0.0.0", [], "lab.example:7860", "http://evil.example", False),
        ("127.0.0.1", PROXY, "lab.example", "https://lab.example", True),
        ("127.0.0.1", PROXY, "127.0.0.1:7860", "https://lab.example", True),  # a proxy that keeps its name to itself
        ("127.0.0.1", PROXY, "other.example", "https://lab.example", False),
        ("127.0.0.1", PROXY, "lab.example", "https://evil.example", False),
    ],
)
def test_only_requests_from_the_page_are_allowed(listens, names, host, origin, own):
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    assert SameOrigin(nothing, listens, names).allows({"type": "http", "headers": headers}) == own


def test_the_page_may_load_from_this_server_only():
    sent = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", b"127.0.0.1:7860")]}
    asyncio.run(SameOrigin(application, "127.0.0.1")(scope, nothing, send))
    (start,) = sent
    assert start["headers"] == [(b"a", b"b"), (b"content-security-policy", POLICY.encode())]
    assert POLICY.startswith("default-src 'self' data: blob: ")
    assert "http" not in POLICY
