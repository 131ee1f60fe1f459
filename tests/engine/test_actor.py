"""One agent at work: when it learns, what it sends, and what is told when it fails."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Late, batches, chain, fork, same, sgd, weights
from torch import nn

import dnigraph as dg
from dnigraph.engine.channel import Line
from dnigraph.heads.conditions import ConditionError

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_an_agent_learns_as_often_as_its_p_update_says():
    net, _ = chain(p_update=0.3, log=True)

    net.run(batches(300))

    learned = [event.learns for event in net.log.of("fire", "f1")]
    assert 60 < sum(learned) < 120


def test_an_agent_drops_out_and_returns():
    net, layers = chain(log=True)
    net.run(batches(2))
    net.pause("f1")
    before = weights(layers[1])

    net.run(batches(3))
    assert same(before, weights(layers[1]))
    assert "paused" in str(net)
    net.resume("f1")
    net.run(batches(2))

    assert not same(before, weights(layers[1]))
    assert [event.tick for event in net.log.of("fire", "f1")] == [0, 1, 5, 6]


class Told(Line):
    """A line that tells when packets go in and out."""

    def __init__(self, told, name):
        super().__init__()
        self.told, self.name = told, name

    def put(self, packet):
        self.told.append(f"{self.name} sent")
        super().put(packet)

    def get(self):
        self.told.append(f"{self.name} heard")
        return super().get()

    def rest(self):
        self.told += [f"{self.name} heard"] * len(self._packets)
        return super().rest()


def test_messages_leave_before_their_sender_learns_and_answers_before_it_waits_for_others():
    net, layers = chain()
    (x, y), *_ = batches(1)
    net.validate(x)
    told = []
    for inbox in net.running.inboxes.values():
        inbox.answers = Told(told, f"answer of {inbox.sink.agent}")
        inbox.messages = Told(told, f"message to {inbox.sink.agent}")
    for number, outbox in net.running.outboxes.items():
        outbox.answers = [net.running.inboxes[number, 0].answers]
        outbox.messages = [net.running.inboxes[number, 0].messages]
    layers[1][0].weight.register_hook(lambda _: told.append("f1 learns"))

    net.tick(x, y)

    assert told.index("message to f2 sent") < told.index("f1 learns")
    assert told.index("answer of f1 sent") < told.index("answer of f2 heard")


def test_a_message_that_lies_in_the_senders_memory_is_sent_as_it_was():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(2, 6))

        def forward(self, x):
            self.count += 1
            return {"count": self.count, "view": self.count[:, :3]}

    seen = []
    net = dg.Network().add("a", Counter()).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.count", "b.input", delay=2)
    net.agents["b"].module.register_forward_pre_hook(lambda m, a, k: seen.append(k["input"]), with_kwargs=True)

    for _ in range(5):
        net.tick(torch.ones(2, 6), torch.ones(2, 3))

    assert [float(s.detach().mean()) for s in seen[-3:]] == [1.0, 2.0, 3.0]


def test_a_decoupled_model_inside_an_agent_sees_the_agents_label():
    class Around(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return 2 * self.model(x)

    inner = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    (x, y), *_ = batches(1)
    dm = dg.decouple(inner, "1", (x,), condition=dg.one_hot(3), boundary="dni")
    net = dg.Network().add("a", Around(dm), loss=F.cross_entropy)
    before = weights(next(iter(dm.boundaries.values())).head)

    net.tick(x, y)
    net.tick(x, y)

    assert not same(before, weights(next(iter(dm.boundaries.values())).head))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("boundary", ["dni", "oracle"])
def test_after_a_tick_that_failed_nothing_is_read_late_and_nobody_waits_for_ever(boundary, threads):
    net, x, targets = fork(boundary=boundary)
    net.tick(x, targets)
    net.agents["b"].module.bad = True
    with pytest.raises(ValueError, match="not today") as caught:
        net.run([(x, targets)], threads=threads)
    net.agents["b"].module.bad = False

    assert "in agent 'b', tick 1; it read x [2, 6] from a.output" in caught.value.__notes__
    net.run([(x, targets)] * 3, threads=threads)

    reads = [(e.tick, e.agent, e.stale) for e in net.log.of("read") if e.tick > 1]
    assert sorted(reads) == [(tick, agent, 0) for tick in (2, 3, 4) for agent in "bc"]
    net.settle()
    assert not any(actor.waiting or any(box.sent for box in actor.outboxes) for actor in net.running.actors.values())


@pytest.mark.parametrize("threads", [False, True])
def test_an_episode_whose_last_tick_fails_is_over_too(threads):
    net, x, targets = fork()
    net.run([(x, targets)] * 3)
    net.agents["b"].module.bad = True

    with pytest.raises(ValueError, match="not today"):
        net.run([(x, targets, None, True)], threads=threads)

    net.agents["b"].module.bad = False
    assert net.ticks == 0
    net.tick(torch.ones(5, 6), {"b": torch.zeros(5, 6), "c": torch.zeros(5, 6)})


def test_inputs_of_two_batch_sizes_are_listed_in_the_error():
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


class Sometimes(nn.Module):
    """Says something, or not."""

    def __init__(self):
        super().__init__()
        self.layer, self.says = nn.Linear(6, 6), True

    def forward(self, x):
        made = self.layer(x)
        return {"own": made.mean()} | ({"said": made} if self.says else {})


@pytest.mark.parametrize("training", [True, False])
def test_an_output_that_is_not_returned_is_not_sent_and_its_reader_has_the_last_one(training):
    net = dg.Network(optimizer=sgd, log=True).add("a", Sometimes(), loss="own")
    net.add("b", nn.Linear(6, 3), loss=F.mse_loss).connect("a.said", "b.input")
    net.validate(torch.ones(2, 6))
    if not training:
        net.eval()

    for says in (True, False, True):
        net.agents["a"].module.says = says
        net.tick(torch.ones(2, 6), {"b": torch.ones(2, 3)})

    assert [(e.tick, e.sent) for e in net.log.of("read") if e.agent == "b"] == [(0, 0), (1, 0), (2, 2)]


def test_a_label_that_does_not_fit_is_told_by_the_boundary_that_looks_at_it():
    net, _ = chain(condition=dg.one_hot(3))
    (x, y), *_ = batches(1)

    with pytest.raises(ConditionError, match=r"the label has 3 samples .*, the batch has 8"):
        net.tick(x, y, label=torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda out, y: (out - y).square(), r"not a tensor of shape \[2, 3\]"),
        (lambda out, y: 3.0, "not float"),
        (lambda out, y: None, "not NoneType"),
    ],
)
def test_a_loss_that_is_not_one_number_is_named(made, words):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3), loss=made)

    with pytest.raises(dg.NetworkError, match=f"the loss of a must be one number in a tensor, {words}"):
        net.tick(torch.ones(2, 6), torch.ones(2, 3))
