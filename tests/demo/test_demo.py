"""The command line: the demo runs from end to end, and what is missing is a message."""

import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from dnigraph.cli import main
from dnigraph.demo import images as data
from dnigraph.passes.errors import DniGraphError


def test_the_demo_prints_plan_results_and_controls_and_draws_the_graph(tmp_path):
    pytest.importorskip("sklearn")
    drawing = tmp_path / "out" / "demo.svg"

    result = CliRunner().invoke(main, ["demo", "--steps", "3", "--batch", "8", "--draw", str(drawing)])

    assert result.exit_code == 0, result.output
    for word in ("part_3", "backprop", "local loss", "cDNI", "DNI: heads do not", "control: silent", "freeze"):
        assert word in result.output
    assert ET.parse(drawing).getroot().tag.endswith("svg")


def test_images_that_cannot_be_had_are_a_message_not_a_stack_trace(monkeypatch):
    def gone(name):
        raise data.DataError(name, ["apt-get: there is no network"], "put the files there")

    monkeypatch.setattr(data, "load", gone)
    result = CliRunner().invoke(main, ["demo", "--data", "mnist"])

    assert result.exit_code == 1 and isinstance(data.DataError("x", [], ""), DniGraphError)
    assert "there is no network" in result.output and "Traceback" not in result.output


def test_the_version_and_the_help_say_what_there_is():
    assert "demo" in CliRunner().invoke(main, ["--help"]).output
