"""Random networks of oracles against backprop through time, written out by hand."""

import random

import networkx as nx
import pytest
import torch
from kit.networks import Collect
from torch import nn

import dnigraph as dg

WIDTH, BATCH, TICKS = 3, 4, 9


class Node(nn.Module):
    """Reads up to three values, some of them stacks, and says two."""

    def __init__(self, stacks):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH * size, WIDTH) for size in stacks])
        self.other = nn.Linear(WIDTH, WIDTH)

    def forward(self, p0=None, p1=None, p2=None):
        read = zip(self.layers, (p0, p1, p2), strict=False)
        said = torch.tanh(sum(layer(p.flatten(1)) for layer, p in read))
        return {"said": said, "other": torch.sigmoid(self.other(said))}


def loss_of(output, target):
    return (output["other"] - target).square().sum()


def drawn(seed):
    """Agents, and links (from, output, [(to, port)], delay, policy): every port is fed; links without delay go on."""
    chance = random.Random(seed)
    agents = [
        {"every": (e := chance.choice([1, 1, 2, 3])), "phase": chance.randrange(e), "loss": chance.random() < 0.6}
        for _ in range(chance.randint(2, 5))
    ]
    agents[0]["loss"] = True
    ports = [(i, p) for i in range(len(agents)) for p in range(chance.randint(1, 2))]
    ports += [(0, 2)] if (0, 1) in ports else []
    chance.shuffle(ports)
    links = []
    while ports:
        ends = [ports.pop() for _ in range(min(len(ports), chance.choice([1, 1, 2])))]
        if chance.random() < 0.25:
            source, delay = None, 0
        else:
            source = chance.randrange(len(agents))
            delay = chance.randint(0 if all(source < i for i, _ in ends) else 1, 2)
        policy = chance.choice(["latest", "mean", "stack"])
        links.append((source, chance.choice(["said", "other"]), ends, delay, policy))
    return agents, links


def size_of(policy):
    return 3 if policy == "stack" else 1


def modules_of(agents, links, seed):
    torch.manual_seed(seed)
    stacks = {end: size_of(policy) for _, _, ends, _, policy in links for end in ends}
    return [Node([stacks[i, p] for p in range(3) if (i, p) in stacks]).double() for i in range(len(agents))]


def unrolled(agents, links, modules, inputs, targets):
    """The sum of all losses, by a simulation that knows nothing of inboxes: lists of all that was ever sent."""
    order = nx.DiGraph([(s, i) for s, _, ends, d, _ in links if s is not None and not d for i, _ in ends])
    order.add_nodes_from(range(len(agents)))
    sent = [[] for _ in links]  # (tick of arrival, value)
    last_read = {}
    total = 0.0
    for tick in range(TICKS):
        for number, (source, *_) in enumerate(links):
            if source is None:
                sent[number].append((tick, inputs[number][tick]))
        for i in nx.topological_sort(order):
            agent = agents[i]
            if tick < agent["phase"] or (tick - agent["phase"]) % agent["every"]:
                continue
            read = {}
            for number, (_, _, ends, _, policy) in enumerate(links):
                for end, port in ends:
                    if end != i:
                        continue
                    here = [value for arrival, value in sent[number] if arrival <= tick]
                    if policy == "latest":
                        value = here[-1] if here else torch.zeros(BATCH, WIDTH).double()
                    elif policy == "stack":
                        value = torch.stack(([torch.zeros(BATCH, WIDTH).double()] * 3 + here)[-3:], 1)
                    else:
                        before, kept = last_read.get((i, port), (0, None))
                        new = here[before:] or kept or [torch.zeros(BATCH, WIDTH).double()]
                        last_read[i, port] = (len(here), new if here else None)
                        value = sum(new) / len(new)
                    read[f"p{port}"] = value
            made = modules[i](**read)
            if agent["loss"]:
                total = total + loss_of(made, targets[i][tick])
            for number, (source, name, _, delay, _) in enumerate(links):
                if source == i:
                    sent[number].append((tick + delay, made[name]))
    return total


@pytest.mark.parametrize("threads", [False, True], ids=["scheduler", "threads"])
@pytest.mark.parametrize("seed", range(30))
def test_any_network_of_oracles_learns_what_backprop_through_the_unrolled_network_would(seed, threads):
    agents, links = drawn(seed)
    modules = modules_of(agents, links, seed)
    given, targets = (torch.randn(n, TICKS, BATCH, WIDTH).double() for n in (len(links), len(agents)))
    net = dg.Network(optimizer=Collect)
    for i, agent in enumerate(agents):
        loss = loss_of if agent["loss"] else None
        net.add(f"a{i}", modules[i], every=agent["every"], phase=agent["phase"], loss=loss)
    for number, (source, name, ends, delay, policy) in enumerate(links):
        net.connect(
            f"in{number}" if source is None else f"a{source}.{name}", [f"a{i}.p{p}" for i, p in ends],
            delay=delay, policy=dg.stack(3) if policy == "stack" else policy, boundary="oracle", initial=(WIDTH,),
        )  # fmt: skip
    heard = nx.DiGraph([(i, s) for s, _, ends, *_ in links if s is not None for i, _ in ends])
    heard.add_nodes_from(range(len(agents)))
    learning = [i for i, agent in enumerate(agents) if agent["loss"]]
    reached = set(learning).union(*(nx.descendants(heard, i) for i in learning))
    for i in set(range(len(agents))) - reached:
        modules[i].requires_grad_(False)  # else it is refused: nobody could ever teach it

    ticks = [
        ({f"in{n}": given[n][t] for n, link in enumerate(links) if link[0] is None},
         {f"a{i}": targets[i][t] for i in learning})
        for t in range(TICKS)
    ]  # fmt: skip
    net.run(ticks, threads=threads)
    net.settle()

    unrolled(agents, links, modules, given, targets).backward()
    for name, actor in net.running.actors.items():
        assert not actor.waiting, f"{name} still waits"
        for key, p in net.agents[name].module.named_parameters():
            found = None if actor.group is None else actor.group.optimizer.state[p].get("sum")
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            found = torch.zeros_like(p) if found is None else found
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=lambda m: f"{name}.{key}: {m}")  # noqa: B023
