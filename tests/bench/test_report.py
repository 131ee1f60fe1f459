"""What the report says of losses, times and memory that are known."""

import json

import pytest

from dnigraph.bench.report import BenchReport, Outcome, better, smoothed


def outcome(arm, level, *, ratio=1.0, held=100, control=False, noise=0.01):
    losses = [level + noise * (-1) ** (i + len(arm)) for i in range(100)]
    return Outcome(
        arm, control, smoothed(losses), smoothed(losses, 1 / max(ratio, 1)), None, 0.001 * ratio, ratio, held, 0.1,
        {}, {}, losses,
    )  # fmt: skip


def report(*tried, real=True):
    controls = [outcome("silent", 2.0, control=True), outcome("freeze", 1.0, control=True)]
    outcomes = (outcome("backprop", 0.5), *tried, *controls)
    return BenchReport("Net", 2, 100, outcomes, real, False, "cpu", 1)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            outcome("dni", 0.6, held=40),
            "Decoupling pays with dni at a loss of 0.6 for backprop's 0.5: 0.40 of the memory.",
        ),
        (outcome("dni", 0.5, held=40), "Decoupling pays with dni: 0.40 of the memory."),
        (
            outcome("dni", 0.6, ratio=0.7),
            "Decoupling pays with dni at a loss of 0.6 for backprop's 0.5: 0.70 of the time",
        ),
        (outcome("dni", 0.6, ratio=1.4), "In one process decoupling saves nothing here, and dni learns best"),
        (outcome("dni", 1.5, held=40), "Decoupling does not pay for this model with these cuts"),
        (
            outcome("dni", 1.0, held=40),
            "Decoupling does not pay for this model with these cuts",
        ),  # as good as a control
        (outcome("dni", float("nan"), held=40), "Decoupling does not pay for this model with these cuts"),
    ],
)
def test_the_last_line_says_whether_decoupling_pays(one, said):
    assert report(one).verdict[-1].startswith(said)


def test_each_boundary_is_held_against_the_controls():
    lines = report(outcome("a", 0.5), outcome("b", 1.5), outcome("c", 1.0), outcome("d", float("nan"))).verdict

    assert "more than all controls, and its loss is as good as backprop's within noise" in lines[0]
    assert "b: it does worse than the control 'freeze' (1.5 and 1)" in lines[1]
    assert "c: it does no better than the control 'freeze'" in lines[2]
    assert "d: its loss is not finite" in lines[3]


def test_of_two_that_learn_and_save_the_one_with_the_lower_loss_is_named():
    cheap, good, dear = outcome("cheap", 0.8, held=20), outcome("good", 0.6, held=60), outcome("dear", 0.55)

    assert report(cheap, good, dear).verdict[-1].startswith("Decoupling pays with good")


def test_on_random_data_no_loss_is_told():
    told = report(outcome("dni", 0.6, held=40), real=False)

    assert "the losses say nothing" in told.verdict[0] and "dni holds least" in told.verdict[1]
    assert "0.6" not in str(told).split("The data is random")[0].replace("0.60", "")


def test_a_difference_within_the_noise_is_none():
    assert not better(outcome("aa", 0.999, noise=0.05), outcome("a", 1.0, noise=0.05))
    assert better(outcome("aa", 0.9, noise=0.05), outcome("ab", 1.0, noise=0.05))


def test_rows_are_plain_data_with_their_origin_and_the_table_fits(tmp_path):
    told = report(outcome("dni", 0.6, held=40))
    told.save(tmp_path / "rows.jsonl")

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["backprop", "dni", "silent", "freeze"]
    assert rows[1]["bytes held"] == 40 and rows[1]["torch"] and len(rows[1]["losses"]) == 100
    assert "…" not in str(told) and "control: freeze" in str(told)
    assert told["dni"].ratio == 1.0


def test_the_loss_in_the_time_of_backprop_is_that_of_fewer_steps():
    losses = [float(i) for i in range(100)]

    assert smoothed(losses) == 94.5
    assert smoothed(losses, 0.5) == 47.0  # the last five of fifty
