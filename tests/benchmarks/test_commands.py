"""`python -m benchmarks`."""

from pathlib import Path

import pytest

pytest.importorskip("benchmarks.rows", reason="the benchmarks are only in a checkout")

import click
from click.testing import CliRunner

import benchmarks
from benchmarks import __main__ as commands
from benchmarks import rows

NAMES = (*commands.MINUTES, *commands.HOURS)


def test_the_list_has_every_benchmark_and_its_question():
    listing = CliRunner().invoke(commands.main, ["list"]).output

    for name in NAMES:
        assert f"  {name} " in listing
        assert commands.question(name).endswith("?")


def test_every_file_with_a_command_is_listed():
    folder = Path(benchmarks.__file__).parent
    files = [file for file in folder.glob("*.py") if "@click.command()" in file.read_text()]
    rooms = [file.parent for file in folder.glob("*/command.py")]

    assert {path.stem for path in (*files, *rooms)} == {*NAMES, *commands.WRITERS}


@pytest.mark.parametrize("name", [*NAMES, *commands.WRITERS])
def test_every_name_is_a_command(name):
    command = commands.main.get_command(click.Context(commands.main), name)

    assert command.help


def test_a_benchmark_runs_in_its_smallest_form_and_leaves_its_rows_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", rows.RESULTS)  # put back behind the test
    arguments = ["--results", str(tmp_path), "network_size", "--rounds", "1", "--most", "100"]

    result = CliRunner().invoke(commands.main, arguments, catch_exceptions=False)

    assert result.exit_code == 0
    assert [row["arm"] for row in rows.read(tmp_path / "network_size.jsonl")] == ["chain", "tangle", "star"]
