"""The receiver's end of a link: what is read, when, and the one answer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Late, batches, same, sgd, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_a_fast_reader_answers_once_with_the_sum_of_all_its_gradients():
    torch.manual_seed(0)
    a, b = nn.Linear(6, 4), nn.Linear(4, 3)
    plain = copy.deepcopy(a)
    still = copy.deepcopy(b)
    net = dg.Network(optimizer=sgd)
    net.add("a", a, every=3, phase=0)
    net.add("b", b, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    net.connect("a.output", "b.input", boundary="oracle")
    given = list(batches(3))

    for x, y in given:
        assert same(weights(a), weights(plain))
        net.tick(x, {"b": y})

    optimizer = sgd(plain.parameters())
    said = plain(given[0][0])
    sum(F.cross_entropy(still(said), y) for _, y in given).backward()
    optimizer.step()
    for ours, theirs in zip(a.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "initial", [lambda batch: torch.ones(batch, 6), torch.ones(1, 6), (6,)], ids=["function", "one sample", "sizes"]
)
def test_what_is_read_first_fits_every_batch(initial):
    net = dg.Network(optimizer=sgd).add("a", Late(6), loss=lambda made, y: made.square().mean())
    net.connect("a.output", "a.heard", delay=1, initial=initial)

    for size in (4, 2, 4):
        net.tick({"a.x": torch.ones(size, 6)}, torch.ones(size))
        net.tick({"a.x": torch.ones(size, 6)}, torch.ones(size), ends=True)


def test_what_is_read_first_has_the_precision_of_the_sender():
    net = dg.Network().add("a", nn.Linear(6, 5).double()).add("b", nn.Linear(5, 6).double(), loss=F.mse_loss)
    net.connect("a.output", "b.input")
    net.connect("b.output", "a.input", initial=(6,))

    assert net.tick({}, torch.ones(4, 6).double()).outputs["b"]["output"].shape == (4, 6)


class Writing(nn.Module):
    """Writes to what it is given, as many residual nets do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x.add_(1).relu_())


@pytest.mark.parametrize("p_update", [1.0, 1e-9])
def test_an_agent_that_writes_to_its_input_spoils_it_for_no_other(p_update):
    torch.manual_seed(0)
    a, b, c = nn.Linear(6, 6), Writing(), nn.Linear(6, 3)
    plain = copy.deepcopy(nn.ModuleList([a, b, c]))
    net = dg.Network(optimizer=sgd).add("a", a).add("b", b, loss=F.mse_loss, p_update=p_update)
    net.add("c", c, loss=F.mse_loss, p_update=p_update)
    net.connect("a.output", ["b.x", "c.input"], boundary="oracle")
    x = torch.randn(2, 6)
    kept, y = x.clone(), torch.ones(2, 3)

    out = net.tick(x, {"b": y, "c": y}).outputs

    said = plain[0](x)
    assert torch.equal(out["b"]["output"], plain[1](said.clone()))
    assert torch.equal(out["c"]["output"], plain[2](said))
    assert torch.equal(x, kept)


def test_a_message_that_somebody_has_written_to_is_refused():
    net = dg.Network().add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("x", "b.input", delay=1)
    x = torch.ones(2, 6)
    net.tick(x, torch.ones(2, 3))
    x.add_(1)

    with pytest.raises(dg.NetworkError, match=r"b.input: what x sent in tick 0 has been written to since: send a copy"):
        net.tick(x, torch.ones(2, 3))


class Weight(nn.Module):
    """A weight of 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.weight


def paused(before, boundary="oracle", **options):
    """How often the weight counts in six ticks of a sender that fires in every third, and is paused from one on."""
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 1.0)).add("a", Weight(), every=3, phase=0)
    net.add("b", nn.Identity(), loss=lambda out, y: out.sum())
    net.connect("a.output", "b.input", boundary=boundary, initial=(1,), **options)
    for i in range(6):
        if i == before:
            net.pause("a")
        net.tick({"a.x": torch.ones(1, 1)}, {"b": torch.ones(1)})
    net.finish()
    return round(1 - net.agents["a"].module.weight.item(), 5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("before", "options", "readings"),
    [
        (1, {"delay": 1}, 5),  # sent in tick 0, read in ticks 1 to 5
        (2, {"delay": 1, "policy": "mean"}, 5),
        (3, {"delay": 1}, 5),  # paused just before it would have sent the next one
        (4, {"delay": 1}, 5),  # the next one is read in ticks 4 and 5
        (1, {"delay": 0}, 6),
        (2, {"delay": 0, "policy": "mean"}, 6),
        (9, {"delay": 0}, 6),
    ],
)
def test_a_message_of_a_paused_oracle_returns_the_gradient_of_every_reading(before, options, readings):
    assert paused(before, **options) == readings


@pytest.mark.parametrize("boundary", ["oracle", dg.silent(refresh=1), dg.dni(blend=1.0)])
def test_a_reading_of_what_was_answered_before_the_pause_is_told_once(boundary):
    """In tick 2 the clocks say that nobody will read the message again."""
    with pytest.warns(UserWarning, match=r"tick 3: b.input reads again what a.output sent in tick 0") as caught:
        found = paused(3, boundary, delay=0)

    assert found == 3
    assert len([w for w in caught if "reads again" in str(w.message)]) == 1


@pytest.mark.filterwarnings("error")
def test_behind_the_end_of_a_stretch_of_time_nothing_is_expected_to_go_back():
    net = dg.Network(optimizer=sgd).add("a", Weight()).add("b", Weight(), loss=lambda out, y: out.sum())
    net.connect("a.output", "b.x", boundary="oracle")
    tick = {"a.x": torch.ones(1, 1)}, {"b": torch.ones(1)}
    net.tick(*tick)

    net.settle()
    net.pause("a")
    net.tick(*tick)
