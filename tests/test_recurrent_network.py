"""A recurrent network as a network of models: the same numbers from both."""

import pytest
import torch
from streaming import BATCH, IN, OUT, STEPS, WIDE, adam, mse
from torch import nn

import dnigraph as dg

WINDOW = 3
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def pair(name, **options):
    """The same recurrent network twice, the second as a network."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        step, more = STEPS[name]()
        made.append(dg.Recurrent(step, horizon=WINDOW, loss=mse, optimizer=adam, **more, **options))
    return made[0], made[1]


def stream(name, count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x, y = (torch.randn(WINDOW, BATCH, size, generator=generator) for size in (IN, OUT))
        yield (x.movedim(1, 0), y.movedim(1, 0)) if "batch first" in name else (x, y)


def weights(rnn):
    return [p for module in rnn.modules().values() for p in module.state_dict().values()]


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "discount": 0.5, "warm_up": 2}, {"boundary": "silent"}],
                         ids=["dni", "strong, after a warm-up", "silent"])  # fmt: skip
@pytest.mark.parametrize("name", STEPS)
def test_as_a_network_a_stream_gives_bitwise_the_same_numbers(name, options):
    rnn, other = pair(name, **options)
    windows = list(stream(name, 8))
    net = other.network(windows[0][0])

    for x, y in windows:
        ours, theirs = net.tick(x, y), rnn.step(x, y)
        assert torch.equal(ours.losses["core"], theirs.loss)

    for mine, its in zip(weights(other), weights(rnn), strict=True):
        assert torch.equal(mine, its)


def test_as_a_network_of_oracles_it_learns_by_full_backprop_through_time():
    rnn, other = pair("lstm", boundary="oracle", clip=None)
    windows = list(stream("lstm", 5))
    net = other.network(windows[0][0])

    for i, (x, y) in enumerate(windows):
        rnn.step(x, y, ends=i == 4)
        net.tick(x, y, ends=i == 4)

    for mine, its in zip(weights(other), weights(rnn), strict=True):
        torch.testing.assert_close(mine, its)  # sums over windows are added in another order


def test_a_run_goes_on_as_a_network_with_its_head_and_optimisers():
    rnn, other = pair("lstm")
    windows = list(stream("lstm", 6))
    for one in (rnn, other):
        for x, y in windows[:4]:
            one.step(x, y)
    rnn.reset()
    net = other.network()

    for x, y in windows[4:]:
        rnn.step(x, y)
        net.tick(x, y)

    assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(rnn), strict=True))
    assert "horizon" in str(net) and "core.state → core.state" in str(net)


def test_the_agent_can_be_wired_to_others():
    rnn, _ = pair("gru")
    x, y = next(stream("gru", 1))
    core = rnn.network(x).agents["core"].module
    net = dg.Network(optimizer=adam).add("core", core).add("judge", nn.Linear(OUT, OUT), loss=mse)
    net.connect("core.state", "core.state", delay=1, head="linear")
    net.connect("core.output", "judge.input", boundary="oracle")
    with pytest.warns(dg.UnconditionedWarning):
        first = net.tick({"core.x": x}, {"judge": y}).losses["judge"]
    for _ in range(30):
        last = net.tick({"core.x": x}, {"judge": y}).losses["judge"]

    assert last < 0.7 * first
    assert core.core.module.hidden_size == WIDE


def test_what_has_no_counterpart_is_refused_at_once():
    torch.manual_seed(0)
    rnn = dg.Recurrent(
        nn.GRU(IN, OUT), horizon=WINDOW, loss=mse, optimizer=adam, auxiliary=True, scale=0.3, discount=1.0
    )

    with pytest.raises(dg.RecurrentError, match=r"show a window: rnn\.network\(x\)"):
        rnn.network()
    with pytest.raises(dg.RecurrentError) as caught:
        rnn.network(torch.randn(WINDOW, BATCH, IN))

    assert "auxiliary=True" in str(caught.value) and "scale=0.3 and discount=1.0" in str(caught.value)
