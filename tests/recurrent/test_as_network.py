"""A recurrent network as a network of models: the same numbers from both."""

import copy

import pytest
import torch
from kit.streams import BATCH, IN, OUT, STEPS, WIDE, adam, bounded, mse
from torch import nn

import dnigraph as dg
from dnigraph.recurrent.as_network import _first
from dnigraph.recurrent.layout import find_layout

WINDOW = 3
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def pair(name, **options):
    """The same recurrent network twice, the second as a network."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        step, more = STEPS[name]()
        made.append(dg.Recurrent(step, horizon=WINDOW, loss=mse, optimizer=adam, **more, **bounded(options)))
    return made[0], made[1]


def stream(name, count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x, y = (torch.randn(WINDOW, BATCH, size, generator=generator) for size in (IN, OUT))
        yield (x.movedim(1, 0), y.movedim(1, 0)) if "batch first" in name else (x, y)


def weights(rnn):
    return [p for module in rnn.modules().values() for p in module.state_dict().values()]


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "discount": 0.5}, {"boundary": "silent"}],
                         ids=["dni", "strong", "silent"])  # fmt: skip
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


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "discount": 0.5}, {"boundary": "silent"}],
                         ids=["dni", "strong", "silent"])  # fmt: skip
@pytest.mark.parametrize("threads", [False, True])
def test_sequences_that_end_give_bitwise_the_same_numbers(options, threads):
    rnn, other = pair("lstm", **options)
    windows = [(x, y, i % 3 == 2) for i, (x, y) in enumerate(stream("lstm", 9))]
    net = other.network(windows[0][0])

    found = net.run([(x, y, None, ends) for x, y, ends in windows], threads=threads)

    for ours, (x, y, ends) in zip(found, windows, strict=True):
        assert torch.equal(ours.losses["core"], rnn.step(x, y, ends=ends).loss)
    assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(rnn), strict=True))
    assert other.ending == rnn.ending or "boundary" in options


def test_windows_in_the_other_order_give_the_same_numbers():
    rnn, other = pair("lstm")
    windows = list(stream("lstm", 6))
    net = other.network(windows[0][0], batch_first=True)

    for x, y in windows:
        ours = net.tick(x.transpose(0, 1), y.transpose(0, 1))
        assert torch.equal(ours.losses["core"], rnn.step(x, y).loss)
        assert ours.outputs["core"]["output"].shape == (BATCH, WINDOW, OUT)

    assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(rnn), strict=True))


def test_a_short_window_weighs_less_also_where_the_loss_has_a_name():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.GRUCell(IN, WIDE), nn.Linear(WIDE, OUT)

        def forward(self, x, state=None):
            state = self.cell(x, state)
            return {"scores": self.out(state), "loss": self.out(state).square().mean(-1)}, state

    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(dg.Recurrent(Scored(), horizon=4, loss="loss", optimizer=adam))
    rnn, other = made
    x = torch.randn(2, BATCH, IN)
    net = other.network(x)

    for _ in range(4):
        rnn.step(x)
        net.tick(x)

    assert all(torch.equal(a, b) for a, b in zip(weights(other), weights(rnn), strict=True))


def test_a_run_that_was_saved_in_the_middle_goes_on_the_same(tmp_path):
    windows = list(stream("lstm", 9))
    (one, net), (two, other) = [(rnn, rnn.network(windows[0][0])) for rnn in pair("lstm", cap=0.2)]
    for i, (x, y) in enumerate(windows[:6]):
        net.tick(x, y, ends=i == 1)
    net.save(tmp_path / "net.pt")
    other.load(tmp_path / "net.pt", windows[0][0])

    for x, y in windows[6:]:
        net.tick(x, y)
        other.tick(x, y)

    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))
    assert one.ending and two.ending

    _, third = pair("lstm", cap=0.3)
    with pytest.raises(dg.NetworkError, match=r"cap is 0.3 here and 0.2 in the file"):
        third.network(windows[0][0]).load(tmp_path / "net.pt", windows[0][0])


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("head", [{}, {"condition": dg.one_hot(4)}], ids=["", "with labels"])
@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
def test_its_outputs_can_be_sent_to_others(copied, head):
    torch.manual_seed(0)
    rnn = dg.Recurrent(nn.GRU(IN, WIDE, batch_first=True), horizon=WINDOW, loss=mse, optimizer={"*": adam}, **head)
    x, label = torch.randn(BATCH, WINDOW, IN), torch.arange(BATCH)
    net = rnn.network(x, label=label)
    net.add("judge", nn.Linear(WIDE, OUT), loss=mse, optimizer=adam)
    net.connect("core.output", "judge.input", **head)
    net = copy.deepcopy(net) if copied else net
    y = torch.randn(BATCH, WINDOW, OUT)

    first = net.tick({"core.x": x}, {"judge": y}, label=label).losses["judge"]
    for _ in range(60):
        last = net.tick({"core.x": x}, {"judge": y}, label=label).losses["judge"]

    assert last < 0.9 * first
    moved = rnn.core.module.weight_ih_l0
    assert torch.equal(moved, net.agents["core"].module.core.module.weight_ih_l0) != copied


def test_time_first_windows_are_not_sent_to_others():
    rnn, _ = pair("gru")
    net = rnn.network(torch.randn(WINDOW, BATCH, IN)).add("judge", nn.Linear(OUT, OUT), loss=mse, optimizer=adam)
    net.connect("core.output", "judge.input", boundary="oracle")

    with pytest.raises(dg.NetworkError, match=r"messages are \[batch, ...\]: .*batch_first=True"):
        net.validate()


def test_the_agent_can_be_wired_anew():
    rnn, _ = pair("gru")
    x, y = next(stream("gru", 1))
    core = rnn.network(x, batch_first=True).agents["core"].module
    net = dg.Network(optimizer=adam).add("core", core).add("judge", nn.Linear(OUT, OUT), loss=mse)
    net.connect("core.state", "core.state", delay=1, head="linear")
    net.connect("core.output", "judge.input", boundary="oracle")
    x, y = x.transpose(0, 1), y.transpose(0, 1)
    with pytest.warns(dg.UnconditionedWarning):
        first = net.tick({"core.x": x}, {"judge": y}).losses["judge"]
    for _ in range(30):
        last = net.tick({"core.x": x}, {"judge": y}).losses["judge"]

    assert last < 0.7 * first
    assert core.core.module.hidden_size == WIDE


def test_its_targets_are_no_labels():
    torch.manual_seed(0)
    rnn = dg.Recurrent(nn.GRU(IN, 4), horizon=BATCH, loss=nn.CrossEntropyLoss(), optimizer=adam,
                       condition=dg.one_hot(4))  # fmt: skip
    x, y, label = torch.randn(BATCH, BATCH, IN), torch.randint(4, (BATCH, BATCH)), torch.arange(BATCH)
    net = rnn.network(x, label=label)

    with pytest.raises(dg.NetworkError, match=r"give tick\(...\) label="):
        net.tick(x, y)

    net.tick(x, y, label=label)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_window_that_does_not_fit_is_told_in_the_order_of_the_network(batch_first):
    rnn, _ = pair("gru")
    x = torch.randn(5, 5, IN)
    order = "batch, time" if batch_first else "time, batch"

    with pytest.raises(dg.NetworkError, match=rf"has 5 steps, the horizon is 3: .* way out: the order is \[{order}"):
        rnn.network(torch.randn(WINDOW, BATCH, IN), batch_first=batch_first).tick(x, x)


def test_a_target_of_another_shape_is_told():
    rnn, _ = pair("gru")
    x, _ = next(stream("gru", 1))

    with pytest.raises(dg.RecurrentError, match=r"target is \[4, 3, 2\], where the window has 3 steps of 4 sequences"):
        rnn.network(x).tick(x, torch.randn(BATCH, WINDOW, OUT))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"listen_after": 3}, "the 3 windows that are left of listen_after"),
        ({"clip": {"*": 1.0}}, "a clip for the heads"),
        ({"blend": 0.5}, "blend=0.5"),
        ({"boundary": dg.dni(warm_up=3)}, "warm_up=3"),
        ({"traces": 0.0}, "traces=0.0"),
        ({"update": "sequence"}, "update='sequence'"),
        ({"boundary": "shuffled"}, "boundary='shuffled'"),
    ],
)
def test_options_that_need_two_passes_are_refused(options, words):
    rnn, _ = pair("gru", **options)

    with pytest.raises(dg.RecurrentError, match=words):
        rnn.network(torch.randn(WINDOW, BATCH, IN))


def test_an_oracle_that_learns_sequence_by_sequence_has_its_counterpart():
    rnn, _ = pair("gru", boundary="oracle", update="sequence")

    assert rnn.network(torch.randn(WINDOW, BATCH, IN)).agents


def test_what_has_no_counterpart_is_refused_at_once():
    torch.manual_seed(0)
    rnn = dg.Recurrent(
        nn.GRU(IN, OUT),
        horizon=WINDOW,
        loss=mse,
        optimizer=adam,
        boundary=dg.dni_in_time(auxiliary=True, scale=0.3, discount=1.0),
    )

    with pytest.raises(dg.RecurrentError, match=r"show a window: rnn\.network\(x\)"):
        rnn.network()
    with pytest.raises(dg.RecurrentError) as caught:
        rnn.network(torch.randn(WINDOW, BATCH, IN))

    assert "auxiliary=0.003" in str(caught.value) and "scale=0.3 and discount=1.0" in str(caught.value)


def test_before_a_batch_is_known_a_first_state_is_that_of_one_sequence():
    layout = find_layout(torch.zeros(2, 3), torch.zeros(3, 3))

    assert _first(layout, 0)(None).shape == (1, 3) and _first(layout, 0)(4).shape == (4, 3)


def test_all_of_the_state_comes_back_in_the_next_window():
    rnn, _ = pair("custom")

    net = rnn.network(torch.randn(WINDOW, BATCH, IN))

    assert [(link.source.name, link.delay) for link in net.links] == [("state", 1), ("rest_2", 1)]
