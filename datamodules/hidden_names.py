"""Names that no listing of images includes: those of operating systems and programs, not of data."""

RULE = 1  # number of the rule below, a part of the keys of cached listings: increase it when the rule changes

# Made by macOS in zips, and by Windows and Synology in folders.
SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
)


def is_hidden(path: str) -> bool:
    """Return whether a file is hidden, or lies in a hidden folder.

    A name is hidden if it begins with a dot, such as ._photo.png, .cache or .ipynb_checkpoints, or is a `SYSTEM_NAMES`
    in any case.

    Args:
        path: path relative to the folder or archive that is listed, with forward slashes or backslashes.
    """
    names = path.replace("\\", "/").split("/")
    # A leading "./", as in many tar files, is no name.
    return any((name[:1] == "." and name not in (".", "..")) or name.lower() in SYSTEM_NAMES for name in names)
