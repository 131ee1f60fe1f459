"""Files of checkpoints: what they are, before they are read, and what killed processes have left of them."""

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..passes.errors import nearest

try:
    import fcntl
except ImportError:  # not on Windows: there, what is left stays
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

SPARE = 2**28  # bytes by which views in a file may exceed what is stored: masks are repeated over a batch, say


def look(path: Path) -> str | None:
    """Why this file cannot be one that `torch.save` wrote, seen without reading what it holds; None: it may be one."""
    if path.is_dir():
        return f"is a folder, not a checkpoint{_beside(path, 'run.pt')}"
    if not path.exists():
        return f"does not exist{_beside(path.parent, path.name)}"
    try:
        size = path.stat().st_size
        if not size:
            return "is empty, so it is no checkpoint: was the disk full?"
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return "is no checkpoint: it is no archive of the kind that torch.save writes"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        whole = sum(entry.file_size for entry in entries)
        return f"is no checkpoint: it inflates from {size} to {whole} bytes, and torch.save compresses nothing"
    return None


def expanded(state: Any, size: int) -> str | None:
    """Why the tensors of a state that was read from a file of this size are no ones to copy; None: they are.

    A view may repeat a few stored numbers as often as it likes, and costs memory only when it is copied.
    """
    views = [t for t in pytree.tree_leaves(state) if isinstance(t, Tensor) and t.layout == torch.strided]
    repeated = [t for t in views if not t.is_quantized and t.nbytes > t.untyped_storage().nbytes()]
    whole = sum(t.nbytes for t in repeated)
    if whole <= SPARE + 16 * size:
        return None
    return f"its tensors repeat what is stored until there are {whole} bytes, in a file of {size}"


def lock(file: BinaryIO) -> None:
    """Lock a file that is being written, until it is closed or its process ends."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)


def remove_abandoned(target: Path) -> None:
    """Remove the half-written files of `target` whose writers have ended: those that nobody holds a lock of."""
    for part in _parts(target):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it is being written
            if os.fstat(file.fileno()).st_size:  # an empty one may be a file that is about to be locked
                part.unlink()


def _parts(target: Path) -> Iterator[Path]:
    if fcntl is None:
        return
    name = re.compile(re.escape(target.name) + r"[a-z0-9_]{8}\.part")  # as tempfile.mkstemp names them
    with contextlib.suppress(OSError):
        yield from [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _beside(folder: Path, name: str) -> str:
    """The files of a folder that are nearest to a name, as the tail of a message."""
    if not folder.is_dir():
        return f": there is no folder {folder}"
    try:
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError:
        return ""
    return nearest(name, files) or (
        f"; {folder} holds {', '.join(files[:5])}" if files else f"; {folder} holds no file"
    )
