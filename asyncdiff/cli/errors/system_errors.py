"""Explain errors of the operating system in one clause: path, reason and remedy."""

import errno
import os
import re
import sys
import traceback
from pathlib import Path

OTHER_PATH = "choose another path"
REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: OTHER_PATH,
    errno.EEXIST: OTHER_PATH,
    errno.ENOTDIR: "a file is in the place of a folder, choose another path",
    errno.EISDIR: "name a file in it",
    errno.ENOTEMPTY: OTHER_PATH,
    errno.ELOOP: "remove the link",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.EFBIG: "choose a folder of another file system",
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENFILE: "close other programs",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the file system again",
    errno.ETXTBSY: OTHER_PATH,
    errno.EXDEV: "choose a folder on the same file system",
}
# These come without a path when a file that is open is read or written.
WITHOUT_PATH = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE)
PROGRAMS = (sys.prefix, str(Path(__file__).parents[3] / "asyncdiff"), str(Path(__file__).parents[3] / "datamodules"))


def system_error_message(error: BaseException) -> str | None:
    """Return path, reason and remedy of an error of the operating system; None for others, and for a bug.

    A path that belongs to an installed package is a bug; every other path comes from the user or the machine.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return None
    path, reason = error.filename, error.strerror or os.strerror(error.errno)
    if not isinstance(path, str | bytes | os.PathLike):
        return f"{reason}: {REMEDIES[error.errno]}" if error.errno in WITHOUT_PATH else None
    shown = os.fsdecode(path)
    return None if _belongs_to_a_package(shown) else f"{shown}: {reason}: {REMEDIES.get(error.errno, OTHER_PATH)}"


def system_error_text(text: str) -> str | None:
    """Return the same for an error that arrives as text, such as [Errno 2] No such file or directory: 'photo.png'."""
    if not (match := re.fullmatch(r"\[Errno (\d+)\] ([^:]+)(?:: '(.*)')?", text, re.DOTALL)):
        return None
    return system_error_message(OSError(int(match[1]), match[2], match[3]))


def unknown_home_message(error: RuntimeError) -> str | None:
    """Explain pathlib's error for ~NAME of a user that does not exist; None for other errors."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code.co_name != "expanduser":
        return None
    return f"{frames[-1].f_locals.get('self', '~')}: there is no such user: check the path"


def _belongs_to_a_package(path: str) -> bool:
    absolute = os.path.abspath(path)
    return any(Path(absolute).is_relative_to(program) for program in PROGRAMS)
