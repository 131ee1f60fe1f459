"""Every block of every page under docs/ runs, and every name of the library that a page speaks of exists."""

import re
from pathlib import Path

import pytest

import dnigraph as dg

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
pytestmark = pytest.mark.skipif(not PAGES, reason="the pages are not part of an installation")


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_runs_after_the_ones_before(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {}

    for block in blocks:
        exec(block, names)  # the point of the test

    assert blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_of_the_library_that_it_speaks_of_exists(page):
    spoken = set(re.findall(r"\bdg\.(\w+)", page.read_text()))

    assert spoken and all(hasattr(dg, name) for name in spoken)
