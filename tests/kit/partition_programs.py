"""What the tests of partition, split and insert share: small captures, parts that run, programs drawn at random."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.cuts.specs import resolve
from dnigraph.passes.graph.captured_graph import Owner
from dnigraph.passes.graph.mark import mark_name
from dnigraph.passes.parts.split import Value, split
from dnigraph.passes.plan.partition import partition


@dataclass
class Captured:
    model: nn.Module
    graph: fx.Graph
    constants: dict
    inputs: tuple

    def __post_init__(self):
        """Labels that say what a node is, whatever name the graph gave it: "layer@2", a mark, an input, "add@3"."""
        self.labels, seen = {}, {}
        for node in self.graph.nodes:
            label = self._label(node)
            seen[label] = seen.get(label, 0) + 1
            self.labels[node.name] = label if seen[label] == 1 else f"{label}@{seen[label]}"

    def _label(self, node):
        if node.op == "call_module":
            return list(node.meta["nn_module_stack"])[-1]
        if node.op == "call_function":
            return mark_name(node) or getattr(node.target, "function", node.target).__name__
        return node.target

    def label(self, name):
        return self.labels[name]

    def labelled(self, edges):
        return tuple((self.labels[a], self.labels[b]) for a, b in edges)

    def node(self, label):
        return next(node for node in self.graph.nodes if self.labels[node.name] == label)

    def edges(self, *pairs):
        return [(self.node(a), self.node(b)) for a, b in pairs]

    def module(self, graph, model=None):
        return fx.GraphModule(Owner(model or self.model, self.constants), graph)


def captured(model, *inputs, how="record", example=True):
    inputs = tuple(x.clone() for x in inputs)  # the same tensor twice would be taken for one input
    captured = capture(model, inputs, {}, how)
    if example:
        annotate(captured, model, [x.clone() for x in inputs])
    return Captured(model, captured.graph, captured.constants, inputs)


def parted(model, cuts, *inputs, **options):
    """A captured model and its plan at cuts that a user would write, or at labels of nodes."""
    whole = captured(model, *inputs, **options)
    modules = [path for path, _ in model.named_modules() if path]
    if isinstance(cuts, list):
        names = {whole.label(node.name): node.name for node in whole.graph.nodes if node.op != "call_module"}
        cuts = [names.get(c, c) if isinstance(c, str) else tuple(names.get(end, end) for end in c) for c in cuts]
    return whole, partition(whole.graph, resolve(whole.graph, cuts, modules).edges)


def nodes_of(whole, plan):
    """The labels of the nodes of each part."""
    return [{whole.label(name) for name in part.nodes} for part in plan.parts]


def where(whole, plan):
    """The numbers of the parts in which each node stands: several where it is made again rather than sent."""
    stands = {}
    for number, nodes in enumerate(nodes_of(whole, plan)):
        for label in nodes:
            stands[label] = (*stands.get(label, ()), number)
    return stands


def model_of(forward, **modules):
    """A model from its layers and a function of (layers, *inputs)."""
    made = type("Model", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(made, name, module)
    return made


def chain(**layers):
    """Layers one after the other, with names."""
    return nn.Sequential(OrderedDict(layers))


def linear(width=4):
    return nn.Linear(width, width)


X = torch.ones(2, 4)


class Skipping(nn.Module):
    """A value with two consumers, a size, several outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x, scale):
        h = F.relu(self.first(x))
        deep = F.dropout(self.middle(h))
        flat = torch.cat([deep, h * scale], 1).view(x.shape[0], -1)
        return self.last(flat), h, scale


SKIPPING_INPUTS = (torch.arange(8.0).view(2, 4), torch.tensor(2.0))


def run_parts(parts, found, model, inputs):
    """The model's outputs, from parts that run in order and see nothing but copies of what they are given."""
    values = dict(zip(parts.inputs, inputs, strict=True))
    learning = {crossing.node for crossing in parts.crossings if crossing.gradient}
    cut = split(found.graph, parts)
    for part in parts.parts:
        out = found.module(cut.graphs[part.name], model)(
            *(sent(values[name], name in learning) for name in part.inputs)
        )
        values |= zip(part.outputs, (out,) if len(part.outputs) == 1 else out, strict=True)
    return [values[v.name] if isinstance(v, Value) else v for v in cut.outputs]


def sent(value, learning):
    """A copy, as another process would get it."""
    if not torch.is_tensor(value):
        return value
    copied = value.detach().clone()
    return copied.requires_grad_().clone() if learning else copied  # no leaf: it may be changed in place


def state(model):
    return [t.clone() for t in (*model.parameters(), *model.buffers(), torch.get_rng_state())]


def assert_parts_equal_the_whole(found, parts):
    """Bitwise: outputs, weights, buffers and the random numbers that come next."""
    whole, divided = copy.deepcopy(found.model), copy.deepcopy(found.model)
    torch.manual_seed(1)
    expected = found.module(found.graph, whole)(*(x.clone() for x in found.inputs))
    expected_state = state(whole)
    torch.manual_seed(1)
    got = run_parts(parts, found, divided, [x.clone() for x in found.inputs])
    pairs = [*zip(expected, got, strict=True), *zip(expected_state, state(divided), strict=True)]
    for one, other in pairs:
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other


WIDTH = 8


class Program(nn.Module):
    """A model that runs a list of (step, which value, which other value)."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.pair = nn.LSTM(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.register_buffer("total", torch.ones(()))

    def forward(self, x, y):
        self.values, self.masks, self.inputs = [x, y], [y > 0], (x, y)
        self.values[0] = self.linears[0](x)
        for step, i, j in self.steps:
            h, other = self.values[i % len(self.values)], self.values[j % len(self.values)]
            made = getattr(self, step)(h, other, i, j)
            if made is not None:
                self.values.append(made)
        return self.values[-1], self.values[-2]

    def linear(self, h, other, i, j):
        return self.linears[j % 3](h)

    def add(self, h, other, i, j):
        return h + other

    def relu(self, h, other, i, j):
        return h.relu()

    def relu_(self, h, other, i, j):
        return None if any(h is x for x in self.inputs) else h.relu_()

    def write_view(self, h, other, i, j):
        if not any(h is x for x in self.inputs):
            h[:, : 1 + j % WIDTH].mul_(0.5)

    def dropout(self, h, other, i, j):
        return F.dropout(h, 0.5)

    def noise(self, h, other, i, j):
        return h + torch.randn(h.shape[0], WIDTH)

    def size(self, h, other, i, j):
        return h + torch.arange(other.shape[0])[:, None] / other.shape[0]

    def mask(self, h, other, i, j):
        self.masks.append((h > 0) ^ self.masks[j % len(self.masks)])

    def where(self, h, other, i, j):
        return torch.where(self.masks[j % len(self.masks)], h, other)

    def detach(self, h, other, i, j):
        return h.detach().sigmoid() * 2

    def count(self, h, other, i, j):
        self.total.add_(1)
        return h * self.total

    def norm_(self, h, other, i, j):
        return self.norm(h)

    def chunk(self, h, other, i, j):
        a, b = h.chunk(2, 1)
        return torch.cat([b, a + other[:, : WIDTH // 2]], 1)

    def weighted(self, h, other, i, j):
        return h @ self.weight.tril()

    def noisy_weight(self, h, other, i, j):
        return h @ F.dropout(self.weight, 0.5)

    def input_mask(self, h, other, i, j):
        self.masks.append(self.inputs[1] > self.inputs[1].mean())

    def guard(self, h, other, i, j):
        if h.detach().abs().sum() > 1e9:
            return None
        return h * 0.5

    def lstm(self, h, other, i, j):
        out, (_, cell) = self.pair(h)
        return out + cell

    def built_mask(self, h, other, i, j):
        mask = torch.zeros(h.shape[0], WIDTH, dtype=torch.bool)
        mask[:, : 1 + j % WIDTH] = True
        self.masks.append(mask)


STEPS = [name for name in vars(Program) if not name.startswith("_") and name != "forward"]
