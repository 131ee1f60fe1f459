"""A run that stops, is saved and goes on in a new process's objects ends bitwise like one that never stopped."""

import pytest
import torch
from kit.networks import adam, same, weights
from kit.streams import STEPS, data, made

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
AFTER = 4  # steps after the save


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
