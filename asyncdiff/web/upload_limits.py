"""Bounds on what is sent to the page: the size of a message, and of all uploaded files together."""

from contextlib import suppress
from pathlib import Path

from asyncdiff.web.limits import Limits
from asyncdiff.web.same_origin import ASGICallable, Scope, reject

MEGABYTE = 2**20
# A message that is too long by less than this factor is read: browsers show no answer to one that they cannot send.
READ = 10


class UploadLimits:
    """ASGI middleware that rejects messages which are too long, or whose length is unknown.

    Args:
        app: application to protect.
        folder: folder of the uploaded files.
        limits: limits on a file and on all of them.
    """

    def __init__(self, app: ASGICallable, folder: Path, limits: Limits):
        self.app = app
        self.folder = folder
        self.limits = limits

    async def __call__(self, scope: Scope, receive: ASGICallable, send: ASGICallable) -> None:
        """Forward the request to the application, or answer with an error."""
        if scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH"):
            headers = {name.lower(): value for name, value in scope["headers"]}
            length = headers.get(b"content-length", b"")
            if not length.isdigit():
                await reject(send, 411, "the length of the message must be known")
                return
            if int(length) > (self.limits.megabytes + 1) * MEGABYTE:
                if int(length) < READ * self.limits.megabytes * MEGABYTE:
                    await _skip(receive)
                await reject(send, 413, f"files must have at most {self.limits.megabytes} MB")
                return
            if scope["path"].endswith("/upload") and self._stored() > self.limits.uploads * MEGABYTE:
                await reject(send, 503, "too many files were uploaded: try again later")
                return
        await self.app(scope, receive, send)

    def _stored(self) -> int:
        """Return the total size of the files, which other threads delete as soon as they are read."""
        total = 0
        for file in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                total += file.stat().st_size
        return total


async def _skip(receive: ASGICallable) -> None:
    """Read a message without keeping it."""
    while (await receive()).get("more_body"):
        pass
