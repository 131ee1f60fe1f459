"""Every block of the README runs, and every command of it exists."""

import re
from pathlib import Path

import pytest

import dnigraph as dg

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not part of an installation")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
def test_every_python_block_runs_after_the_ones_before(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    names = {}

    for block in blocks("python"):
        exec(block, names)  # the point of the test

    said = capsys.readouterr().out
    assert "part_0" in said and "the same function" in said and "cut 'layer9'" in said
    assert names["plain"] is names["model"]


def test_every_command_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    commands = re.findall(r"^make (\S+)", "".join(blocks("sh")), re.MULTILINE)

    assert commands and set(commands) <= targets


def test_every_name_of_the_library_that_it_speaks_of_exists():
    spoken = set(re.findall(r"\bdg\.(\w+)", README.read_text()))

    assert spoken and all(hasattr(dg, name) for name in spoken)
