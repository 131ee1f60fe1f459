"""Parts on several ranks: the numbers of one process, whatever crosses, and what happens when a rank fails."""

import re

import pytest
import torch
from kit import ranks
from kit.models import BOUNDARIES, ZOO, loss_of

import dnigraph as dg
from dnigraph.runners.distributed import unseen

pytestmark = pytest.mark.distributed
TOKENS = "tied_weights_and_a_mask_for_all"
OTHERS = [name for name in ZOO if name not in ranks.TIED]
FITTING = [name for name in BOUNDARIES if "dfa" not in name]  # that one looks at the error, which the last rank has


def agree(ends):
    """All ranks ended well, saw something, and nothing was apart."""
    assert [(end.code, end.error) for end in ends] == [(0, None)] * len(ends)
    assert [end.value[0] for end in ends] == [[]] * len(ends)
    assert all(end.value[1] for end in ends)


LATE = ["all", "oracle", "a blended local loss", "silence with refreshes"]


def test_two_ranks_learn_bitwise_what_local_does_with_every_boundary():
    cases = [(OTHERS[i % len(OTHERS)], boundary, 0, None) for i, boundary in enumerate(FITTING)]
    cases += [
        (OTHERS[-i % len(OTHERS)], boundary, 2, None) for i, boundary in enumerate(FITTING, 2) if boundary in LATE
    ]
    around = {"part_0": 0, "part_1": 1, "part_2": 0}  # weights of the first part, used again in the last
    cases.append((TOKENS, "dni", 0, around))

    agree(ranks.run(2, ranks.beside_local, cases))


def test_three_ranks_do_with_skips_over_ranks_and_several_parts_on_one():
    four = {"part_0": 0, "part_1": 1, "part_2": 2, "part_3": 0}
    cases = [
        ("unet_with_skips_over_several_cuts", "dni", 0, four),
        ("unet_with_skips_over_several_cuts", "oracle", 2, {**four, "part_3": 1}),
        ("dense_with_many_readers", "all", 2, {**four, "part_1": 2, "part_2": 1}),
        ("two_towers", "warm-up", 0, {"part_0": 2, "part_1": 0, "part_2": 1}),
    ]

    agree(ranks.run(3, ranks.beside_local, cases))


def test_weights_that_parts_on_several_ranks_share_are_one_weight_on_all_of_them():
    two = {"part_0": 0, "part_1": 1, "part_2": 1}
    cases = [(TOKENS, "dni", late, two) for late in (0, 2)]
    cases += [(TOKENS, boundary, 2, None) for boundary in ("oracle", "silence")]

    agree(ranks.run(2, ranks.beside_local, cases))
    agree(ranks.run(3, ranks.beside_local, [(TOKENS, "oracle", 1, None), (TOKENS, "dni", 0, None)]))


def test_where_one_rank_has_a_gradient_that_is_not_finite_none_steps_what_they_share():
    agree(ranks.run(2, ranks.with_a_gradient_that_is_not_finite, 1))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (TOKENS, {"clip": 1.0}, "embed.weight lies on several ranks, none of which knows the norm"),
        ("a_module_called_twice", {}, "encoder.1.running_mean is used by part_0 (rank 0) and part_1 (rank 1)"),
    ],
)
def test_what_ranks_cannot_share_is_refused(name, options, words):
    for end in ranks.run(2, ranks.refused_shares, name, options):
        assert words in end.value


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("killed", "rank 2 (part_2) is gone"),
        ("terminated", "rank 2 (part_2) is gone"),
        ("left", "rank 2 (part_2) is gone"),
        ("stopped", "rank 2 (part_2) has given no sign of life for"),
        ("raises", "rank 2 (part_2) has ended its run"),
        ("closes", "rank 2 (part_2) has ended its run"),
        ("babbles", "rank 2 (part_2) is gone (what came is no header of a frame"),
    ],
)
def test_a_fault_of_one_rank_is_told_on_all_others_by_its_name_and_ends_no_process_but_its_own(fault, words):
    ends = ranks.run(3, ranks.with_fault, fault, 2, 2 if fault in ("killed", "stopped") else 0, doomed=2)

    for end in ends[:2]:
        assert (end.code, end.error) == (0, None)  # no abort: what gloo would do
        assert end.value.startswith(words)


# ---- checkpoints


def local_run(boundary=BOUNDARIES["dni"]):
    dm, args = ranks.made("chain", boundary)
    return dg.Local(dm, loss=loss_of, optimizer=ranks.adam, scheduler=ranks.halved), args


@pytest.mark.parametrize("boundary", ["replay", "a warmed-up local loss"])
def test_what_three_ranks_save_goes_on_bitwise_in_one_process_and_on_two_ranks(tmp_path, boundary):
    file = tmp_path / "run.pt"
    three = ranks.run(3, ranks.saving, boundary, None, file)
    assert [(end.code, end.error) for end in three] == [(0, None)] * 3
    whole = {key: value for end in three for key, value in end.value.items()}

    local, args = local_run(BOUNDARIES[boundary])
    local.load(file)
    for batch, y in ranks.batches(args, 3, first=3):
        local.step(*batch, target=y)
    two = ranks.run(2, ranks.saving, boundary, file, None)

    assert ranks.digests(local.dm.state_dict()) == whole
    assert {key: value for end in two for key, value in end.value.items()} == whole
    assert len(whole) == len(local.dm.state_dict())


def test_what_one_process_saves_goes_on_bitwise_on_ranks_that_keep_their_own_states_only(tmp_path):
    local, args = local_run()
    for batch, y in ranks.batches(args, 3):
        local.step(*batch, target=y)
    local.save(tmp_path / "run.pt")

    ends = ranks.run(2, ranks.saving, "dni", tmp_path / "run.pt", None)
    for batch, y in ranks.batches(args, 3, first=3):
        local.step(*batch, target=y)

    whole = ranks.digests(local.dm.state_dict())
    assert {key: value for end in ends for key, value in end.value.items()} == whole


def test_what_is_shared_over_ranks_is_saved_once_and_goes_on_bitwise_in_one_process_and_on_ranks(tmp_path):
    name, file = TOKENS, tmp_path / "run.pt"
    first = ranks.run(2, ranks.saving, "dni", None, file, name)
    again = ranks.run(3, ranks.saving, "dni", file, None, name)
    dm, args = ranks.made(name, BOUNDARIES["dni"])
    local = dg.Local(dm, loss=loss_of, optimizer=ranks.adam, scheduler=ranks.halved)
    local.load(file)
    for batch, y in ranks.batches(args, 3, first=3):
        local.step(*batch, target=y)

    whole = ranks.digests(dm.state_dict())
    for ends in (first, again):
        assert [(end.code, end.error) for end in ends] == [(0, None)] * len(ends)
        assert {key: value for end in ends for key, value in end.value.items()} == whole


def test_what_cannot_be_saved_or_loaded_is_refused_on_all_ranks_and_the_run_goes_on(tmp_path):
    other, _ = ranks.made("early_exit", "dni")
    dg.Local(other, loss=loss_of, optimizer=ranks.adam).save(tmp_path / "other.pt")

    for end in ranks.run(2, ranks.refused_files, tmp_path):
        assert end.error is None
        under_way, folder, missing, strange = end.value
        assert "answers are under way" in under_way and "run.settle()" in under_way
        assert "there is no folder" in folder
        assert "rank 0 (part_0): " in missing and "rank 1 (part_1, part_2): " in missing and "does not exist" in missing
        assert "fc2.weight" in strange


# ---- ranks of different minds


@pytest.mark.parametrize(
    ("unlike", "words"),
    [
        ("cuts", r"cuts: .* on rank 0 .*; .* on rank 1"),
        ("late", r"late: 0 on rank 0 .*; 1 on rank 1"),
        ("optimizer", r"optimisers: .*SGD.*Adam"),
    ],
)
def test_ranks_that_do_not_fit_each_other_are_refused_at_the_start(unlike, words):
    for end in ranks.run(2, ranks.of_another_mind, unlike):
        assert "the ranks do not fit each other" in end.value and re.search(words, end.value)


@pytest.mark.parametrize(
    ("unlike", "words"),
    [
        ("inputs", "were given other inputs in step 3; all ranks read the same batches"),
        ("labels", "were given other labels in step 3; all ranks read the same batches"),
        ("calls", "make the same calls on all ranks"),
        ("type", "was [4, 8] float32 in the first step"),
        ("loss", "rank 1 (part_1, part_2) failed in step 3: ZeroDivisionError: of the user's"),
    ],
)
def test_ranks_that_do_different_things_are_told_which_on_all_of_them(unlike, words):
    ends = ranks.run(2, ranks.doing_another_thing, unlike)

    assert any(words in str(end.value) for end in ends)
    assert all(end.value and end.code == 0 for end in ends)


def test_boundaries_that_look_at_what_another_rank_has_are_named():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    dm = dg.decouple(model, ["0", "1"], (torch.ones(2, 4),), boundary={"0": "dfa", "1": "silent"})

    (wrong,) = unseen(dm.boundaries)

    assert wrong.startswith("boundary '0' (dfa) looks at the gradient of the loss") and "dg.Local" in wrong
