"""What a tick is given: inputs, targets and labels by name."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, batches, chain, everything, fork, same, sgd, squared, weights
from torch import nn

import dnigraph as dg
from dnigraph.network.tick_inputs import TickInputs

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_a_tick_without_an_input_fails_before_anybody_fires():
    net, x, targets = fork()
    net.add("d", Cell(), loss=squared)
    inputs = {"a.input": x, "d.x": torch.ones(2, 3), "d.heard": torch.ones(2, 4)}
    net.tick(inputs, targets)
    before, events = everything(net), len(net.log)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"a.input": x}, targets)

    assert "d.x is needed in tick 1" in str(caught.value) and "d.heard is needed" in str(caught.value)
    assert same(before, everything(net)) and len(net.log) == events and net.ticks == 1


@pytest.mark.parametrize("threads", [False, True])
def test_an_input_of_the_network_must_have_come(threads):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3), loss=F.mse_loss).connect("x", "a.input")
    net.validate(torch.ones(2, 6))
    there, lacking = ({"x": torch.ones(2, 6)}, torch.ones(2, 3)), ({}, torch.ones(2, 3))

    with pytest.raises(dg.NetworkError, match="x is needed in tick 0"):
        net.run([lacking, there], threads=threads)
    net.run([there, lacking], threads=threads)  # the latest, again
    with pytest.raises(dg.NetworkError, match="x is needed in tick 0"):
        net.run([(*there, None, True), lacking], threads=threads)


def test_a_label_that_is_missing_is_asked_for_in_words_of_networks():
    net, _ = chain(condition=dg.one_hot(3))
    (x, y), *_ = batches(1)
    net.tick(x, y)
    before = weights(net)

    with pytest.raises(dg.NetworkError, match=r"in tick 1 there is none for f0: .*label=\{'f0': ...\}"):
        net.tick(x)

    assert net.ticks == 1 and same(before, weights(net))  # nobody has run


def test_the_label_of_one_agent_is_not_anothers_because_it_came_alone():
    net = dg.Network(condition=dg.one_hot(3))
    net.add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    net.add("c", nn.Linear(6, 3), every=2, loss=F.cross_entropy)
    net.connect("a.output", ["b.input", "c.input"])

    with pytest.raises(dg.NetworkError, match="there is none for a"):
        net.tick(torch.ones(2, 6), {"b": torch.tensor([0, 1])})


def two(**options):
    net = dg.Network(**options).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    return net.connect("a.output", "b.input")


X, Y = torch.ones(4, 6), torch.zeros(4, dtype=torch.long)


def test_a_target_that_nobody_looks_at_is_refused():
    with pytest.raises(dg.NetworkError, match=r"nobody looks at the target of 'a': a has no loss.*with a loss: b"):
        two().tick(X, {"a": Y, "b": Y})
    named = dg.Network().add("a", Scored(), loss="cost")
    with pytest.raises(dg.NetworkError, match=r"its loss is its output 'cost', so give what that needs as an input"):
        named.tick(X, {"a": Y})
    two(condition=dg.one_hot(3)).tick(X, {"a": Y, "b": Y})  # a's head looks at it


class Scored(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        scores = self.layer(x)
        return {"scores": scores, "cost": scores.square().mean()}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            torch.zeros(3, dtype=torch.long),
            r"the loss of b was called with \[4, 3\] of float32 and a target \[3\] of int64",
        ),
        (torch.zeros(4), r"a target \[4\] of float32: RuntimeError"),
        ("cat", "a target a str: TypeError"),
        ({"y": Y}, r"a target a dict of \['y'\] \[4\] of int64"),
    ],
    ids=["batch", "dtype", "text", "dict"],
)
def test_a_target_that_the_loss_cannot_take_is_named(target, words):
    with pytest.raises(dg.NetworkError, match=words):
        two().tick(X, {"b": target})


def test_what_a_loss_raises_by_itself_comes_through_with_a_note():
    net = dg.Network().add("a", nn.Linear(6, 3), loss=lambda output, target: 1 / 0)

    with pytest.raises(ZeroDivisionError) as caught:
        net.tick(X, Y)

    assert "the loss of a was called with [4, 3] of float32 and a target [4] of int64" in caught.value.__notes__


@pytest.mark.parametrize("x", [torch.ones(6), torch.ones(1, 6)[0]], ids=["one sample", "a row"])
def test_one_sample_without_a_batch_is_told(x):
    with pytest.warns(UserWarning, match=r"a.input \[6\] looks like one sample without a batch.*x\[None\]"):
        two().validate({"a.input": x})


def test_numbers_of_a_batch_are_no_sample_without_one(recwarn):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return x * self.by

    dg.Network().add("a", Scale(), loss=F.mse_loss).validate({"a.x": torch.ones(6)})

    assert not [w for w in recwarn if "one sample" in str(w.message)]


def test_a_network_of_frozen_agents_is_told():
    net = two()
    for agent in net.agents.values():
        agent.module.requires_grad_(False)

    with pytest.warns(UserWarning, match="nothing will learn, since all parameters of agents are frozen"):
        net.tick(X, Y)


def test_ends_of_single_samples_are_refused():
    with pytest.raises(dg.NetworkError, match=r"ends=tensor.*ends the episode, of all samples of the batch"):
        two().tick(X, Y, ends=torch.ones(4, dtype=torch.bool))


ODD = [None, 3, 2.5, "x", [], {}, torch.ones(4, 5), torch.ones(4, 6, dtype=torch.long)]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_an_input_of_another_form_than_before_is_named(odd):
    net = two()
    net.tick(X, Y)

    with pytest.raises(dg.NetworkError, match=r"a.input is .*, other than in the firing before"):
        net.tick({"a.input": odd}, Y)
    net.tick(X, Y)


ASKED = {
    "pause": (lambda net, odd: net.pause(odd), "there is no agent .*; agents: a, b"),
    "resume": (lambda net, odd: net.resume(odd), "there is no agent .*; agents: a, b"),
    "train": (lambda net, odd: net.train(odd), "True is train mode, False eval mode"),
    "delay_of": (lambda net, odd: net.delay_of(odd), "they are numbered from 0 to 0"),
    "threads": (lambda net, odd: net.run([(X, Y)], threads=odd), "threads=.* one thread for each agent"),
    "run": (lambda net, odd: net.run(odd), "run takes a (list with a )?tuple"),
    "ends": (lambda net, odd: net.tick(X, Y, ends=odd), "ends=.* ends the episode"),
}


@pytest.mark.parametrize("odd", [None, 7, 2.5, "abc", [1], {"a": 1}, torch.ones(2)], ids=str)
@pytest.mark.parametrize("ask", ASKED)
def test_odd_arguments_of_a_run_are_named(ask, odd):
    call, words = ASKED[ask]

    with pytest.raises(dg.NetworkError, match=words):
        call(two(), odd)


@pytest.mark.parametrize("option", ["boundary", "head", "condition", "synthetic"])
def test_a_factory_of_the_users_that_fails_is_named_with_its_link(option):
    def factory(*given):
        raise ArithmeticError("no such thing")

    net = dg.Network().add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    net.connect("a.output", "b.input", **{option: factory})

    with pytest.raises(dg.NetworkError, match=r"a.output → b.input.*no such thing") as caught:
        net.tick(X, Y)

    assert isinstance(caught.value.__cause__, ArithmeticError)


def apart(loss=F.mse_loss):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3), loss=loss)
    return net.add("b", nn.Linear(6, 3), loss=loss)


class Source(nn.Module):
    """An agent that is given nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self):
        return self.weight


@pytest.mark.parametrize(
    ("make", "inputs", "targets", "words"),
    [
        (apart, torch.ones(2, 6), None, "the network has 2 inputs, so name them: a.input, b.input"),
        (apart, {"a.input": 1, "b.input": 1}, torch.ones(2, 3),
         "2 agents have a loss, so name them: targets={agent: ...}"),
        (lambda: apart(None), {"a.input": 1, "b.input": 1}, 3,
         "0 agents have a loss, so name them: targets={agent: ...}"),
        (apart, {"a.input": 1, "b.input": 1}, {"bb": 1}, "targets: there is no agent 'bb'; nearest: b"),
        (lambda: dg.Network().add("s", Source(), loss=F.mse_loss), torch.ones(2, 6), None,
         "the network has no inputs, so give it none"),
    ],
)  # fmt: skip
def test_inputs_and_targets_that_need_a_name_are_asked_for_it(make, inputs, targets, words):
    agents, links = make().agents, []

    with pytest.raises(dg.NetworkError, match="the tick does not fit") as caught:
        TickInputs(agents, links).tick(0, inputs, targets, None, False, True)

    assert words in caught.value.problems


def test_a_network_without_inputs_is_given_none():
    net = dg.Network(optimizer=sgd).add("s", Source(), loss=F.mse_loss)

    result = net.tick(None, torch.zeros(2, 3))

    assert float(result.losses["s"]) == 1 and net.inputs == []
    assert net.agents["s"].module.weight.lt(1).all()


def test_one_input_or_one_that_is_needed_has_no_need_of_a_name():
    agents = dg.Network().add("a", nn.Linear(6, 3)).add("l", nn.LSTM(6, 3)).agents
    known = TickInputs({"l": agents["l"]}, [])

    assert known.named(3) == ({"l.input": 3}, []) and len(known.inputs) == 2  # the state has a default
    assert TickInputs({"a": agents["a"]}, []).named(3) == ({"a.input": 3}, [])
    assert known.named(None) == ({}, [])
