"""The README prints what was measured: its tables are made from the rows, and nothing else."""

import pytest

pytest.importorskip("benchmarks.readme", reason="the benchmarks are only in a checkout")

from benchmarks import readme, rows, tables

TABLES = [(block, name) for block, parts in readme.BLOCKS.items() for name in parts]
SCORES = {  # of each benchmark: a number for each line of its tables
    "step_time": ["ratio"],
    "memory": ["MiB"],
    "every_layer_cut": ["test error %"],
    "harm": ["score", "train loss"],
    "zoo": ["status"],
    "recurrent_recall": ["bits", "solved at"],
    "recurrent_copy": ["solved"],
    "recurrent_repeat": ["solved"],
    "recurrent_characters": ["bits per character, mean of the last 5 evaluations"],
    "recurrent_rows": ["test error %"],
    "window_time": ["ratio"],
    "bptt_memory": ["MiB"],
    "asynchrony": ["test error %", "train loss"],
    "two_clocks": ["B accuracy %"],
    "network_size": ["tick, us/link"],
}


def test_the_readme_is_what_its_command_would_write():
    text = readme.README.read_text()

    assert readme.filled(text) == text


def test_results_that_are_missing_leave_their_table_out(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)

    assert readme.block("costs") == ""


@pytest.mark.parametrize(("block", "name"), TABLES)
def test_every_line_of_a_table_is_that_of_rows(block, name):
    kept = rows.read(rows.results(name))
    table = readme.BLOCKS[block][name](kept)

    for line in cells(table):
        own = [row for row in kept if row.get("lib", row.get("arm")) in line]
        assert own or line[0] == "all"


@pytest.mark.parametrize(("block", "name"), TABLES)
def test_another_measurement_makes_another_table(block, name):
    make = readme.BLOCKS[block][name]
    kept = rows.read(rows.results(name))
    table = make(kept)

    other = make([row | {score: another(row[score]) for score in SCORES[name]} for row in kept])

    assert not [line for line, changed in zip(cells(table), cells(other), strict=True) if line == changed]


def another(value):
    if isinstance(value, dict):  # when something was solved
        return {name: 2 * step for name, step in value.items()}
    return "wrong" if isinstance(value, str) else 2 * value + 1


def test_a_table_says_mean_least_most_and_of_how_many():
    measured = [{"arm": "DNI", "score": score} for score in (1.0, 2.0, 6.0)]

    assert tables.over_seeds(measured, "score", ".1f") == "3.0 (1.0-6.0), 3"
    assert tables.over_seeds([], "score", ".1f") == "-"
    assert tables.markdown(("arm", "n"), [("DNI", 3)]) == "| arm | n |\n|---|---|\n| DNI | 3 |\n"


def test_groups_keep_the_order_in_which_they_come():
    measured = [{"arm": arm, "p": p} for arm, p in (("b", 1), ("a", 1), ("b", 2), ("b", 1))]

    groups = tables.groups(measured, "arm", "p")

    assert [(key, len(own)) for key, own in groups.items()] == [(("b", 1), 2), (("a", 1), 1), (("b", 2), 1)]


def cells(table):
    """The cells of each line below the heads of every table in the text."""
    lines = [line for part in table.split("\n\n") for line in part.strip().splitlines()[2:]]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
