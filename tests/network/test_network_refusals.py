"""Networks that are asked wrongly: everything that is wrong, at once, and the way out."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, Late, batches, chain, fork, same, sgd, squared, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_everything_that_is_wrong_with_wiring_and_example_is_said_at_once():
    net = dg.Network().add("a", Cell(), loss=squared).add("b", nn.Linear(5, 2))
    net.connect("a.said", "b.inputs")
    net.connect("b.output", "b.input", delay=0)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"a.x": torch.ones(2, 3), "a.head": torch.ones(2, 4)})

    said = str(caught.value)
    for words in (
        "b.inputs: Linear has no input 'inputs'; nearest: input", "a circle without delay: b → b",
        "b can never learn", "there is no input 'a.head'; nearest: a.heard", "a.heard is fed by no link and not given",
    ):  # fmt: skip
        assert words in said


def test_what_fails_because_of_another_agent_is_not_called_a_circle():
    net = dg.Network().add("a", nn.Linear(6, 5)).add("b", nn.Linear(5, 2), loss=F.mse_loss)
    net.connect("a.output", "b.input")

    with pytest.raises(dg.NetworkError) as caught:
        net.tick(torch.ones(2, 7))

    assert len(caught.value.problems) == 1
    assert "a cannot take what it is given (input [2, 7])" in str(caught.value)


def test_a_label_that_is_missing_is_asked_for_in_words_of_networks():
    net, _ = chain(condition=dg.one_hot(3))
    (x, y), *_ = batches(1)
    net.tick(x, y)
    before = weights(net)

    with pytest.raises(dg.NetworkError, match=r"in tick 1 there is none for f0: .*label=\{'f0': ...\}"):
        net.tick(x)

    assert net.ticks == 1 and same(before, weights(net))  # nobody has run


@pytest.mark.parametrize("one", [{"x": 1}, torch.ones(2), (1, 2, 3, True, 5)])
def test_run_says_what_it_takes(one):
    net, _ = chain()

    with pytest.raises(dg.NetworkError, match=r"a tuple \(inputs, targets, label, ends\) for each tick"):
        net.run([one])


@pytest.mark.parametrize("capacity", [0, -5, True, 1.5, "x"])
def test_queues_hold_at_least_one_packet(capacity):
    net, _ = chain()
    (x, y), *_ = batches(1)

    with pytest.raises(dg.NetworkError, match=r"capacity=.* a whole number from 1 on"):
        net.run([(x, y)], threads=True, capacity=capacity)


def test_messages_of_batches_of_another_size_are_told():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
    net.connect("x", ["a.input", "b.x"])
    net.connect("a.output", "b.heard", delay=1)
    big, small = torch.ones(4, 6), torch.ones(2, 6)
    net.tick(big, torch.ones(4, 3))

    with pytest.raises(RuntimeError) as caught:
        net.tick(small, torch.ones(2, 3))

    said = "its inputs are of different sizes: 2 (x from x), 4 (heard from a.output, sent 1 ticks before)"
    assert any(said in note for note in caught.value.__notes__)
    net.finish()
    net.tick(big, torch.ones(4, 3), ends=True)
    net.tick(small, torch.ones(2, 3))


@pytest.mark.parametrize("policy", ["mean", dg.stack(2)])
def test_messages_of_two_shapes_make_no_mean_and_no_stack(policy):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6))
    net.add("b", nn.Sequential(nn.Flatten(0, -2), nn.Linear(6, 3)), every=2, loss=lambda made, y: made.square().mean())
    net.connect("a.output", "b.input", policy=policy)
    net.tick({"a.input": torch.ones(4, 6)}, {"b": torch.ones(())})

    with pytest.raises(
        dg.NetworkError, match=r"b.input reads the .* of what a.output sent, and that is \[4, 6\] in tick 0"
    ):
        net.tick({"a.input": torch.ones(2, 6)}, {"b": torch.ones(())})


def test_a_label_for_messages_without_a_batch_is_refused():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x):
            return self.layer(x).mean(0)

    net = (
        dg.Network(optimizer=sgd).add("a", Mean()).add("b", nn.Linear(5, 5), loss=lambda made, y: made.square().mean())
    )
    net.connect("a.output", "b.input", condition=dg.one_hot(3))

    with pytest.raises(dg.NetworkError, match=r"the message is \[5\], and the batch has 4"):
        net.tick(torch.ones(4, 6), torch.ones(4))


def test_what_the_library_says_of_a_module_is_told_whole():
    rnn = dg.Recurrent(nn.GRU(6, 4), horizon=2, loss=F.mse_loss, optimizer=sgd)
    net = rnn.network(torch.ones(2, 3, 6))

    with pytest.raises(dg.NetworkError, match=r"the window has 5 steps, the horizon is 2"):
        net.validate(torch.ones(5, 3, 6))


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


def test_what_a_predictor_looks_at_must_be_there():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6), every=2).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", synthetic=["a.input"], boundary="oracle")
    net.validate({"a.input": torch.ones(2, 6)})

    with pytest.raises(dg.NetworkError, match=r"a\.input is needed in tick 0"):
        net.tick({}, torch.ones(2, 3))


def test_a_circle_beside_an_input_says_what_it_needs():
    net = dg.Network(optimizer=sgd).add("a", Late(6), loss=lambda made, y: made.square().mean())
    net.connect("x", "a.x")
    net.connect("a.output", "a.heard")

    with pytest.raises(dg.NetworkError, match=r"in a circle: connect it with initial="):
        net.tick(torch.ones(2, 6), 0)


def test_arguments_of_agents_and_links_that_do_not_fit_are_named():
    net = dg.Network()
    with pytest.raises(dg.NetworkError, match=r"clip=-1"):
        net.add("a", nn.Linear(2, 2), clip=-1)
    with pytest.raises(dg.NetworkError, match=r"outputs=\['x', 'x'\]"):
        net.add("a", nn.Linear(2, 2), outputs=["x", "x"])
    with pytest.raises(dg.NetworkError) as caught:
        net.connect(1, ["a.x", 3], boundary="dnl", head="hh", initial=(5.5,))

    for words in ("1: an output is called", "3: an input is called", "boundary='dnl'", "head='hh'", "initial=(5.5,)"):
        assert words in str(caught.value)
    net.add("a", nn.Linear(2, 2), outputs="mean", loss=F.mse_loss)
    assert "mean" in net.tick(torch.ones(3, 2), torch.ones(3, 2)).outputs["a"]


def test_outputs_that_are_not_as_many_as_their_names_are_told():
    net = dg.Network().add("a", nn.LSTM(2, 2), outputs=["x"], loss=lambda made, y: made[0].mean())

    with pytest.raises(dg.NetworkError, match="outputs names 1, and LSTM returns 2 values"):
        net.tick(torch.ones(3, 4, 2), 0)


def test_all_inputs_that_lack_are_named_at_once():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
    net.connect("a.output", "b.heard")

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({})

    assert "a.input is fed by no link" in str(caught.value) and "b.x is fed by no link" in str(caught.value)


def test_events_of_a_kind_that_there_is_not_are_refused():
    with pytest.raises(dg.NetworkError, match=r"there is no kind 'targets'; nearest: target"):
        fork()[0].log.of("targets")


@pytest.mark.parametrize(
    ("loss", "words"), [(None, "loss=None is no function"), ("zz", "loss='zz': there is no such output")]
)
def test_a_loss_that_is_none_is_refused_where_the_network_is_made(loss, words):
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "1", (torch.ones(2, 6),))

    with pytest.raises(dg.NetworkError, match=words):
        dm.network(loss=loss)


def test_optimisers_of_a_decoupled_model_are_found_by_glob_and_strange_names_refused():
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "1", (torch.ones(2, 6),))
    (x, y), *_ = batches(1)

    net = dm.network(loss=F.cross_entropy, optimizer={"part_*": sgd})
    net.tick(x, y)

    assert all(isinstance(actor.group.optimizer, torch.optim.SGD) for actor in net.running.actors.values())
    with pytest.raises(dg.DniGraphError, match="no part or boundary is called 'prat_1'; nearest: part_1"):
        dm.network(loss=F.cross_entropy, optimizer={"prat_1": sgd})
