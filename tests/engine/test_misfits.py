"""A file that does not fit a run is refused with every difference, and nothing has changed by then."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES
from kit.side_by_side import Net
from kit.side_by_side import x as rows
from torch import nn

import dnigraph as dg
from dnigraph.engine.updates.misfits import groups_misfit, optimizer_misfits, settings_misfits, state_misfits


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def run_of(width=8, cuts="1", optimizer=adam, scheduler=None, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    x = torch.randn(4, 6, dtype=dtype)
    dm = dg.decouple(model.to(dtype), cuts, (x,), **{"condition": dg.one_hot(CLASSES), "boundary": "dni", **options})
    return dg.Local(dm, loss=F.cross_entropy, optimizer=optimizer, scheduler=scheduler), x


def state_of(run):
    return copy.deepcopy([run.dm.state_dict(), run.state_dict(), torch.get_rng_state()])


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


OTHERS = {
    "another width": ({"width": 12}, r"0\.weight: \[12, 6\] float32 here, \[8, 6\] float32 in the file"),
    "other cuts": ({"cuts": ["1", "3"]}, r"part_2: it has no optimiser of it"),
    "another dtype": ({"dtype": torch.float64}, r"0\.weight: \[8, 6\] float64 here"),
    "another head": ({"head": "linear"}, r"boundary 1: head='linear' here"),
    "another boundary": ({"boundary": "oracle"}, r"missing here, .* in the file"),
    "another option of the boundary": ({"boundary": dg.dni(warm_up=7)}, r"boundary 1: warm_up=7 here, 0 in the file"),
    "another optimiser": (
        {"optimizer": torch.optim.Adagrad},
        r"part_0: optimised by Adagrad here, by Adam in the file",
    ),
    "a schedule": (
        {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2)},
        r"part_0: its schedule is StepLR here, None in the file",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_was_made_otherwise_is_refused_and_nothing_changes(name, tmp_path):
    saved, x = run_of()
    saved.step(x, target=torch.tensor([0, 1, 2, 3]))
    saved.save(tmp_path / "run.pt")
    options, words = OTHERS[name]
    run, _ = run_of(**options)
    before = state_of(run)

    with pytest.raises(dg.CheckpointError, match=words):
        run.load(tmp_path / "run.pt")

    assert same(before, state_of(run))


@pytest.mark.parametrize("steps", [-5, "abc", float("nan"), None, True])
def test_a_number_of_steps_that_is_none_is_refused(steps, tmp_path):
    run, _ = run_of()
    run.save(tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt")
    torch.save({**state, "steps": steps}, tmp_path / "run.pt")

    with pytest.raises(dg.CheckpointError, match="number of steps"):
        run.load(tmp_path / "run.pt")


def test_all_differences_are_listed_at_once(tmp_path):
    saved, _ = run_of()
    saved.save(tmp_path / "run.pt")
    run, _ = run_of(width=12, optimizer=lambda p: torch.optim.SGD(p, 0.1))

    with pytest.raises(dg.CheckpointError) as error:
        run.load(tmp_path / "run.pt")

    assert {"0.weight", "2.weight", "part_0", "part_1"} <= {
        line.split(":")[0].removeprefix("  * ") for line in str(error.value).splitlines()[1:]
    }


def test_the_state_of_one_parameter_must_have_its_shape(tmp_path):
    run, x = run_of(boundary=dg.dni(guard=False))
    run.step(x, target=torch.tensor([0, 1, 2, 3]))
    run.save(tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt")
    state["updates"]["part_0"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, tmp_path / "run.pt")

    with pytest.raises(dg.CheckpointError, match=r"part_0: exp_avg of its parameter 0 is \[3\] in the file"):
        run.load(tmp_path / "run.pt")


def goes_twice(net, x, twice=False):
    h = net.a(x).relu()
    return net.c(net.a(h).relu() if twice else h)


def late_run():
    torch.manual_seed(0)
    dm = dg.decouple(Net(goes_twice), "a", (rows(),), condition=dg.one_hot(3)).train()
    return dg.Local(dm, loss=F.cross_entropy, optimizer=adam)


@pytest.mark.filterwarnings("ignore:a call took a new way")
def test_a_file_has_the_heads_of_ways_that_this_program_has_not_taken_yet(tmp_path):
    y = torch.tensor([0, 1, 2, 0])
    run = late_run()
    run.step(rows(), target=y)
    run.save(tmp_path / "before.pt")
    run.step(rows(), True, target=y)
    run.save(tmp_path / "run.pt")
    expected = [float(run.step(rows(), twice, target=y).loss) for twice in (True, False, True)]

    fresh = late_run()
    fresh.load(tmp_path / "run.pt")
    fresh.save(tmp_path / "again.pt")  # without having taken the way
    third = late_run()
    third.load(tmp_path / "again.pt")

    for other in (fresh, third):
        assert [float(other.step(rows(), twice, target=y).loss) for twice in (True, False, True)] == expected
    run.load(tmp_path / "before.pt")  # an older file lacks them, and they stay
    run.step(rows(), True, target=y)


@pytest.mark.filterwarnings("ignore:a call took a new way")
def test_drop_in_checkpoints_hold_late_heads_too():
    run = late_run()
    run.dm(rows(), True)
    late = {k: v.clone() for k, v in run.dm.state_dict().items() if k.startswith("dni.") and "@2" in k}
    fresh = late_run().dm

    fresh.load_state_dict(run.dm.state_dict())

    assert late and all(torch.equal(fresh.state_dict()[k], v) for k, v in late.items())
    fresh(rows(), True)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in late.items())


def test_what_is_no_state_at_all_is_one_misfit():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    whole = {"kind": "SGD", "optimizer": optimizer.state_dict(), "schedule": None, "scheduler": None}

    assert state_misfits({"weight": torch.ones(2)}, [1]) == ["its model state is a list, not a dict"]
    assert settings_misfits({"1": {}}, None) == ["it does not say what its boundaries were made with"]
    for strange in (3, {}, {name: whole[name] for name in whole if name != "kind"}):
        words = ["part_0: what the file has of its optimiser is no such state"]
        assert optimizer_misfits("part_0", optimizer, None, strange) == words
    assert optimizer_misfits("part_0", optimizer, None, whole) == []
    for strange in (3, {"state": {}}):
        assert groups_misfit(optimizer, strange) == "what the file has of its optimiser is no state dict"


def test_options_of_an_optimiser_that_the_file_lacks_are_named():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    state = optimizer.state_dict()
    for option in ("nesterov", "momentum"):
        del state["param_groups"][0][option]

    words = "the options momentum, nesterov of its optimiser are not in the file"
    assert groups_misfit(optimizer, state) == words
    assert groups_misfit(optimizer, optimizer.state_dict()) is None
