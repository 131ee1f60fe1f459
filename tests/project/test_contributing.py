"""What CONTRIBUTING.md says of how to add something is tried, and every file that it names exists."""

import re
from pathlib import Path

import pytest

from dnigraph.passes.capture import ladder
from dnigraph.passes.cuts import specs
from dnigraph.passes.draw import FORMATS

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(not TEXT.exists(), reason="CONTRIBUTING.md is not part of an installation")


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
def test_every_recipe_works_as_it_is_written(monkeypatch):
    monkeypatch.setattr(specs, "WAYS", specs.WAYS)
    monkeypatch.setitem(ladder.RUNGS, "mine", None)
    monkeypatch.setitem(FORMATS, ".txt", None)
    names = {}

    for block in re.findall(r"```python\n(.*?)```", TEXT.read_text(), re.DOTALL):
        exec(block, names)  # the point of the test

    assert ladder.RUNGS["mine"] and FORMATS[".txt"] and len(specs.WAYS) > 1


def test_every_file_that_it_names_exists():
    paths = re.findall(r"`((?:passes|dnigraph|tests|benchmarks)/[\w/.]*)`", TEXT.read_text())

    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
