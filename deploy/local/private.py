"""Creates files and folders that only their owner can access: they hold keys and user data."""

import os
from pathlib import Path


def opener(path: str, flags: int) -> int:
    """Opens a file for `open`, with these permissions if it is new."""
    return os.open(path, flags, 0o600)


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents."""
    # Path.mkdir would create the parents with default permissions.
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def write(path: Path, text: str) -> None:
    """Writes a file, and its folder if missing. After an interruption it has its old content."""
    make_folder(path.parent)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(draft, "x", opener=opener) as file:
        file.write(text)
    draft.replace(path)
