"""A run that stops, is saved and goes on in a new process's objects ends bitwise like one that never stopped."""

import pytest
import torch
from kit.models import BOUNDARIES, ZOO, cut_up, labels, loss_of
from kit.networks import adam, same, weights
from kit.streams import STEPS, data, made

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
AFTER = 4  # steps after the save
PLACES = [(m, b, (3 * i + j) % 6) for i, m in enumerate(ZOO) for j, b in enumerate(BOUNDARIES)]


def of(runner):
    """Every third pair of a model and a boundary, with the number of steps before the save."""
    places = PLACES[("local", "network").index(runner) :: 3]
    return [pytest.param(*place, id="-".join(map(str, place))) for place in places]


def resumed(make, step, save, load, before):
    """The states after the last step: of a run that never stopped, and of one that did.

    Args:
        make: makes a run; `step(run, i)` makes step `i`, and returns what it tells.
    """
    torch.manual_seed(5)
    straight = make()
    for i in range(before):
        step(straight, i)
    save(straight)
    told = [step(straight, i) for i in range(before, before + AFTER)]

    torch.manual_seed(6)  # other weights, heads and random numbers
    fresh = make()
    load(fresh)
    return straight, told, fresh, [step(fresh, i) for i in range(before, before + AFTER)]


def batch(args, i):
    """The rows in another order in each step, and one less in every other."""
    order = torch.randperm(len(args[0]), generator=torch.Generator().manual_seed(i))[: len(args[0]) - i % 2]
    return tuple(a[order] for a in args), labels(len(order))


@pytest.mark.parametrize(("model", "boundary", "before"), of("local"))
def test_local(model, boundary, before, tmp_path):
    kept = {}

    def make():
        dm, args = cut_up(model, seed=None, boundary=BOUNDARIES[boundary], check=False)
        kept.setdefault("args", args)
        schedule = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 7)  # noqa: E731
        return dg.Local(dm, loss=loss_of, optimizer=adam, scheduler=schedule, clip=1.0)

    def step(run, i):
        args, y = batch(kept["args"], i)
        result = run.step(*args, target=y)
        return [float(result.loss), *(v for seen in result.metrics.values() for v in seen.values())]

    file = tmp_path / "run.pt"
    one, told, other, heard = resumed(make, step, lambda r: r.save(file), lambda r: r.load(file), before)

    assert told == heard
    assert same(state(one.dm), state(other.dm))


@pytest.mark.parametrize(("model", "boundary", "before"), of("network"))
def test_the_network_of_a_decoupled_model(model, boundary, before, tmp_path):
    kept, models = {}, []

    def make():
        dm, args = cut_up(model, seed=None, boundary=BOUNDARIES[boundary], check=False)
        kept.setdefault("given", dict(zip(dm.plan.inputs, args, strict=True)))
        net = dm.network(loss=loss_of, optimizer=adam)
        models.append(dm)
        return net

    def step(net, i):
        args, y = batch(list(kept["given"].values()), 2 * i)
        given = dict(zip(kept["given"], args, strict=True))
        return {name: float(loss) for name, loss in net.tick(given, y).losses.items()}

    def save(net):
        net.settle()
        net.save(file)

    file = tmp_path / "net.pt"
    _, told, _, heard = resumed(make, step, save, lambda net: net.load(file, kept["given"]), before)

    assert told == heard
    assert same(*map(state, models))


STREAMS = {
    "dni": {},
    "warm-up": {"boundary": dg.warm_up("dni", 3)},
    "refresh": {"boundary": dg.refresh("silent", 4)},
    "late listening": {"listen_after": 3},
    "auxiliary": {"auxiliary": True},
    "blend": {"blend": 0.5},
    "traces": {"traces": 0.5},
    "updates per sequence": {"update": "sequence"},
    "exact backprop": {"boundary": "bptt"},
    "silence": {"boundary": "silent"},
    "shuffled": {"boundary": "shuffled"},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own
@pytest.mark.parametrize("before", [0, 1, 4, 5])
@pytest.mark.parametrize("stream", STREAMS)
def test_recurrent(stream, before, tmp_path):
    name = list(STEPS)[(before + 3 * list(STREAMS).index(stream)) % len(STEPS)]

    def make():
        return made(name, seed=None, dtype=torch.float, optimizer=adam, monitor=1, **STREAMS[stream])

    def step(rnn, i):
        x, y = data(rnn, long=3, dtype=torch.float, seed=None)  # drawn anew: by the random state that was saved
        result = rnn.step(x, y, ends=i % 3 == 2)
        return [float(result.loss), result.metrics]

    file = tmp_path / "run.pt"
    one, told, other, heard = resumed(make, step, lambda r: r.save(file), lambda r: r.load(file), before)

    assert told == heard
    assert all(same(weights(m), weights(other.modules()[name])) for name, m in one.modules().items())


def state(dm):
    return [v for v in dm.state_dict().values() if isinstance(v, torch.Tensor)]
