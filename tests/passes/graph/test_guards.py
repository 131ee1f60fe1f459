"""How far the guards of a graph can be trusted after they held once."""

import operator
import warnings

import pytest
import torch
from kit.replay import Doing
from torch import fx, nn
from torch._ops import OpOverloadPacket

from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.graph.guards import Trust, trust
from dnigraph.passes.graph.nodes import Call, SizeCheck, guard

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def trust_in(model, x=X):
    captured = capture(model, (x,), {}, "record")
    annotate(captured, model, [x])
    return trust(captured.graph)


def test_without_guards_a_graph_always_holds():
    assert trust_in(Doing(lambda m, x: m.inner(x) * x.shape[0])) is Trust.ALWAYS


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.inner(x) if x.shape[0] > 2 else m.outer(x),
        lambda m, x: sum(row for row in m.inner(x)),
        lambda m, x: m.inner(x).squeeze(),
        lambda m, x: m.inner(x) * [0, 1, 2, 3][len(x)],
        lambda m, x: m.inner(x) * (2 if m.inner(x).numel() * 2 > 7 else 3),
        lambda m, x: m.inner(x) * (2 if m.inner(x)[:, 1:].is_contiguous() else 3) if x.shape[0] > 2 else x,
        lambda m, x: m.inner(x) if x.stride(0) > 1 else m.outer(x),
    ],
    ids=["branch", "iteration", "squeeze", "index", "arithmetic", "layout", "layout by strides"],
)
def test_guards_on_sizes_hold_again_for_the_same_sizes(function, request):
    expected = Trust.NEVER if "layout" in request.node.name else Trust.SAME_SIZES  # strides are the caller's choice

    assert trust_in(Doing(function)) is expected


class Ragged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[x[:, 0] > 0]

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros(3, 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.inner(x) if x.sum() > 0 else m.outer(x),
        lambda m, x: m.inner(x) if x.max().item() > 0 else m.outer(x),
        lambda m, x: m.inner(x) if torch.rand(()).item() > 0 else m.outer(x),
        lambda m, x: m.inner(x) if 0.0 in x else m.outer(x),
        lambda m, x: m.inner(x)[: max(1, len((x > 0).nonzero()) % 3)],
        lambda m, x: sum(row for row in m.inner(x)[x[:, 0] > -9]),
        lambda m, x: sum(row for row in m.inner(x)[torch.where(x[:, 0] > -9)]),
        lambda m, x: sum(row for row in torch.unique(x)) * m.inner(x),
        lambda m, x: sum(row for row in torch.masked_select(x, x > 0)) * m.inner(x),
        lambda m, x: sum(row for row in Ragged.apply(m.inner(x))),
        lambda m, x: m.inner(x) * float(x.detach().numpy().sum()),
        lambda m, x: m.inner(x) * (2 if m.seen == 0 else 3),
        lambda m, x: m.inner(x) * {0.0: 2}[m.seen.item()],
    ],
    ids="tensor item random contains nonzero mask where unique select function numpy buffer buffer_item".split(),
)
def test_guards_that_look_at_data_are_never_trusted(function):
    assert trust_in(Doing(function)) is Trust.NEVER


def test_the_sizes_that_a_script_makes_are_data():
    class Positive(nn.Module):
        def forward(self, x):
            return x[x[:, 0] > -9]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = Doing(lambda m, x: sum(row for row in m.script(m.inner(x))))
        model.script = torch.jit.script(Positive())

    assert trust_in(model) is Trust.NEVER


@pytest.mark.parametrize(
    ("home", "expected"), [("torch.somewhere", Trust.SAME_SIZES), ("torchlike.ops", Trust.NEVER), ("mine", Trust.NEVER)]
)
def test_the_sizes_that_a_function_of_another_library_makes_are_data(home, expected):
    def some(x):
        return x[x[:, 0] > 0]

    some.__module__ = home
    graph = fx.Graph()
    rows = graph.call_function(some, (graph.placeholder("x"),))
    count = graph.call_function(len, (rows,))
    rows.meta, count.meta = {"shape": (3, 4), "flops": 0}, {"flops": 0}
    graph.call_function(guard, (count, 3, ""))
    graph.output((rows,))

    assert trust(graph) is expected


def test_a_guard_on_a_number_that_no_node_makes_looks_at_no_data():
    graph = fx.Graph()
    graph.call_function(guard, (3, 3, ""))
    graph.output((graph.placeholder("x"),))

    assert trust(graph) is Trust.SAME_SIZES


class Written:
    """A graph by hand: tensors, numbers and flags, with what a run would have written on them."""

    def __init__(self):
        self.graph = fx.Graph()
        self.x = self.tensor(self.graph.placeholder("x"), (3, 4))
        self.number = self.tensor(self.graph.placeholder("n"), ())
        self.mask = self.tensor(self.graph.placeholder("mask"), (3,), torch.bool)

    def tensor(self, node, shape, dtype=torch.float32):
        node.meta.update(shape=shape, dtype=dtype, flops=0)
        return node

    def made(self, function, *args, **kwargs):
        return self.tensor(self.graph.call_function(function, args, kwargs), (3, 4))

    def method(self, name, *args):
        return self.tensor(self.graph.call_method(name, args), (3, 4))

    def size(self, node):
        read = self.graph.call_function(torch.Tensor.size, (node, 0))
        read.meta["flops"] = 0
        return read

    def plain(self, function, *args):
        read = self.graph.call_function(function, args)
        read.meta["flops"] = 0
        return read


def custom(x):
    return x


custom.__module__ = "torch.custom"
SIZES_HOLD = SizeCheck()

SAFE = {
    "a size": lambda w: w.size(w.x),
    "a size of what was computed": lambda w: w.size(w.made(torch.relu, w.x)),
    "arithmetic on a size": lambda w: w.plain(operator.add, w.size(w.x), 1),
    "how many dimensions": lambda w: w.plain(torch.Tensor.dim, w.x),
    "a length": lambda w: w.plain(len, w.x),
    "how many numbers": lambda w: w.plain(torch.Tensor.numel, w.x),
    "a check of sizes": lambda w: w.graph.call_function(Call(SIZES_HOLD), ([w.x],)),
    "where with two values": lambda w: w.size(w.made(torch.where, w.mask, w.x, w.x)),
    "as many zeros as a number": lambda w: w.size(w.made(torch.zeros, 3)),
    "a row by its number": lambda w: w.size(w.made(operator.getitem, w.x, 0)),
    "a slice of numbers": lambda w: w.size(w.made(operator.getitem, w.x, slice(0, 2))),
    "a mask in arithmetic": lambda w: w.size(w.made(operator.mul, w.x, w.mask)),
    "a function of torch": lambda w: w.size(w.made(custom, w.x)),
    "an operator of torch": lambda w: w.size(w.made(torch.ops.aten.relu.default, w.x)),
    "a size of a view by numbers": lambda w: w.size(w.method("view", w.x, 4, 3)),
}
DOUBTFUL = {
    "a tensor": lambda w: w.x,
    "a flag of a tensor": lambda w: w.plain(bool, w.x),
    "whether two are equal": lambda w: w.plain(torch.equal, w.x, w.x),
    "a number in a tensor": lambda w: w.plain(torch.Tensor.item, w.number),
    "arithmetic on it": lambda w: w.plain(operator.add, w.plain(torch.Tensor.item, w.number), 1),
    "how it lies in memory": lambda w: w.plain(torch.Tensor.stride, w.x, 0),
    "where with a condition alone": lambda w: w.size(w.made(torch.where, w.mask)),
    "what is not zero": lambda w: w.size(w.made(torch.nonzero, w.x)),
    "what was made of it": lambda w: w.size(w.made(torch.relu, w.made(torch.nonzero, w.x))),
    "what a method finds": lambda w: w.size(w.method("nonzero", w.x)),
    "as many zeros as a tensor says": lambda w: w.size(w.made(torch.zeros, w.number)),
    "as many zeros in a list": lambda w: w.size(w.made(torch.zeros, [2, w.number])),
    "as many zeros by name": lambda w: w.size(w.made(torch.zeros, size=(w.number,))),
    "rows under a mask": lambda w: w.size(w.made(operator.getitem, w.x, w.mask)),
    "rows under a mask in a tuple": lambda w: w.size(w.made(operator.getitem, w.x, (slice(None), w.mask))),
    "a slice that a tensor ends": lambda w: w.size(w.made(operator.getitem, w.x, slice(None, w.number))),
    "a slice that a tensor begins": lambda w: w.size(w.made(operator.getitem, w.x, slice(w.number, None))),
    "a slice whose step is a tensor": lambda w: w.size(w.made(operator.getitem, w.x, slice(None, None, w.number))),
    "an index of aten": lambda w: w.size(w.made(torch.ops.aten.index.Tensor, w.x, [w.mask])),
    "a function of others": lambda w: w.size(w.made(torchvision_like, w.x)),
    "a number that no run has shown": lambda w: w.graph.call_function(len, (w.x,)),
    "an autograd function": lambda w: w.size(w.made(Call(Ragged.apply), w.x)),
}


def torchvision_like(x):
    return x


@pytest.mark.parametrize("name", [*SAFE, *DOUBTFUL])
def test_a_guard_is_trusted_for_the_same_sizes_where_no_data_can_change_what_it_looks_at(name):
    written = Written()
    value = {**SAFE, **DOUBTFUL}[name](written)
    written.graph.call_function(guard, (value, 3, ""))
    written.graph.output((written.x,))

    assert trust(written.graph) is (Trust.SAME_SIZES if name in SAFE else Trust.NEVER)


@pytest.mark.parametrize(("kind", "expected"), [(nn.Linear, Trust.SAME_SIZES), (Doing, Trust.NEVER)])
def test_a_module_of_torch_makes_sizes_of_sizes_and_a_module_of_others_may_not(kind, expected):
    written = Written()
    made = written.tensor(written.graph.call_module("inner", (written.x,)), (3, 4))
    made.meta["nn_module_stack"] = {"outer": ("outer", Doing), "inner": ("inner", kind)}
    written.graph.call_function(guard, (written.size(made), 3, ""))
    written.graph.output((made,))

    assert trust(written.graph) is expected


def _tagged(tag):
    """The operators of torch that carry a tag, by name, but for indexing: that depends on its indices."""
    names = [name for name in dir(torch.ops.aten) if isinstance(getattr(torch.ops.aten, name), OpOverloadPacket)]
    packets = {name: getattr(torch.ops.aten, name) for name in names if name != "index"}
    return {n for n, packet in packets.items() if any(tag in getattr(packet, o).tags for o in packet.overloads())}


# What torch has no tag for: layouts, packed sequences, and what calls one of the others.
SIZED_BY_DATA = """
    unique argwhere combinations histogramdd segment_reduce pack_padded_sequence _pack_padded_sequence
    pad_packed_sequence _pad_packed_sequence to_sparse to_sparse_coo to_sparse_csr to_sparse_csc to_sparse_bsr
    to_sparse_bsc coalesce indices _indices values _values crow_indices col_indices ccol_indices row_indices
""".split()
READ_FROM_DATA = "item tolist stride storage_offset".split()


@pytest.mark.parametrize("name", sorted({*_tagged(torch.Tag.dynamic_output_shape), *SIZED_BY_DATA, *READ_FROM_DATA}))
def test_data_decides_how_large_the_result_of_some_operators_is(name):
    written = Written()
    written.graph.call_function(guard, (written.size(written.method(name, written.x)), 3, ""))
    written.graph.output((written.x,))

    assert trust(written.graph) is Trust.NEVER


SIZES_TAKEN = """
    arange range linspace logspace zeros ones full empty rand randn randint randperm eye tril_indices triu_indices
    new_zeros new_ones new_full new_empty tensor_split hsplit vsplit dsplit split chunk narrow narrow_copy expand
    broadcast_to view reshape repeat tile unflatten unfold resize_ as_strided pad interpolate getitem select
    sparse_coo_tensor hamming_window hann_window blackman_window bartlett_window kaiser_window affine_grid topk
""".split()


@pytest.mark.parametrize("name", SIZES_TAKEN)
def test_a_tensor_that_is_taken_as_a_size_decides_how_large_a_result_is_and_a_number_does_not(name):
    for size, expected in (("number", Trust.NEVER), (3, Trust.SAME_SIZES)):
        written = Written()
        taken = written.number if size == "number" else size
        written.graph.call_function(guard, (written.size(written.method(name, written.x, taken)), 3, ""))
        written.graph.output((written.x,))

        assert trust(written.graph) is expected
