"""Files of checkpoints, before they are read."""

import zipfile
from pathlib import Path

import pytest

from dnigraph.runners.archive import look


def test_a_file_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "run.pt"
    file.write_bytes(b"PK")
    monkeypatch.setattr(zipfile, "ZipFile", refuse)

    assert look(file) == "cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("files", "tail"),
    [
        ([], "; {} holds no file"),
        (["zz.txt", "aa.csv"], "; {} holds aa.csv, zz.txt"),
        (list("fgabcde"), "; {} holds a, b, c, d, e"),
        (["run_2.pt"], "; nearest: run_2.pt"),
    ],
)
def test_a_missing_file_is_told_with_what_lies_there(files, tail, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    (tmp_path / "run.folder").mkdir()

    assert look(tmp_path / "run_1.pt") == "does not exist" + tail.format(tmp_path)


def test_a_folder_that_cannot_be_listed_is_no_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)

    assert look(tmp_path / "run_1.pt") == "does not exist"
