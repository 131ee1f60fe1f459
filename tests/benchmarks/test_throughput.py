"""Throughput of two processes: every arm runs, and the table compares what was measured side by side."""

import pytest

pytest.importorskip("benchmarks.throughput", reason="the benchmarks are only in a checkout")

import torch

from benchmarks import throughput


def row(arm, model, ratio, disturbed=False):
    return {
        "arm": arm, "model": model, "disturbed": disturbed, "throughput ratio": ratio, "ratio quartiles": "1.00-2.00",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(throughput.CASES))
def test_the_halves_of_a_case_are_the_model(name):
    case = throughput.made(name)
    whole, halves = throughput.made(name).model(), [throughput.made(name).half(rank) for rank in (0, 1)]

    made = whole(case.x)

    assert torch.equal(made, halves[1](halves[0](case.x)))
    assert throughput.loss(made, case.y).isfinite()


@pytest.mark.distributed
def test_every_arm_runs_on_two_processes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    rows = throughput.launched("mlp", rounds=1, steps=1, seconds=1.0, disturbed=False)

    assert len(rows) == 11
    assert rows[0]["throughput ratio"] == 1
    assert all(row["ms"] > 0 and row["blocks"] == 1 for row in rows)


def test_the_table_has_a_column_for_each_model_and_one_for_each_that_was_disturbed():
    rows = [row("a", "mlp", 1.0), row("b", "mlp", 1.75), row("b", "conv", 1.5), row("b", "mlp", 1.25, disturbed=True)]

    lines = throughput.table(rows).splitlines()

    assert lines[0].endswith("| mlp | conv | mlp, a core disturbed |")
    assert lines[2] == "| a | 1.00 (1.00-2.00) |  |  |"
    assert lines[3] == "| b | 1.75 (1.00-2.00) | 1.50 (1.00-2.00) | 1.25 (1.00-2.00) |"
