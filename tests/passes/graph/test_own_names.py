"""Names of the user's never reach source: the written graph speaks of names of ours."""

import copy
import keyword
import re

import pytest
import torch
from torch import fx, nn

from dnigraph.passes.graph.nodes import numbered
from dnigraph.passes.graph.own_names import GraphModule, child, constant_name, generated, own_names

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
NAMES = [
    'a"b',
    "a'b",
    "a\nb",
    "a\x00b",
    "\\",
    "\ud800",
    "e\u0301",
    "class",
    "None",
    "self",
    "code",
    "graph",
    "_code",
    "7",
    "",
]


class Shout(nn.Module):
    """Takes whatever keyword arguments there are."""

    def forward(self, x, **more):
        return x + sum(more.values())


def one_call(name):
    """A graph that calls a module of this name, reads a tensor below another one, and returns their sum."""
    graph = fx.Graph()
    called = graph.call_module(name, (graph.placeholder("x"),))
    graph.output((graph.call_function(torch.add, (called, graph.get_attr(f"inner.{name}"))),))
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_written_as_a_plain_name_whatever_it_is(name):
    things = {name: nn.Linear(4, 4), f"inner.{name}": torch.ones(4)}

    module = generated(one_call(name), things.__getitem__)

    assert torch.equal(module(X)[0], things[name](X) + 1)
    written = re.findall(r"self\.(\w+)", module.code)
    assert module.code.isascii() and len(set(written)) == 2
    assert not any(keyword.iskeyword(word) or word in dir(fx.GraphModule) for word in written)


def test_names_that_read_alike_stay_apart():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(tuple(graph.call_module(name, (x,)) for name in ("a.b", "a_b", "a b", "a" * 50, "a" * 51)))

    copied, paths = own_names(graph)

    assert sorted(paths.values()) == sorted(["a.b", "a_b", "a b", "a" * 50, "a" * 51]) and paths["a_b"] == "a_b"
    assert [paths[node.target] for node in copied.find_nodes(op="call_module")] == [
        node.target for node in graph.find_nodes(op="call_module")
    ]


@pytest.mark.parametrize("inputs", [("x", "x"), ("self", "class"), ('x = print("!")', "a b")])
def test_arguments_are_called_as_the_nodes_are(inputs):
    graph = fx.Graph()
    one, other = map(graph.placeholder, inputs)
    graph.output((graph.call_function(torch.sub, (one, other)),))

    (out,) = generated(graph, {}.__getitem__)(X + 1, X)

    assert torch.equal(out, X + 1 - X)


def test_keywords_methods_and_attributes_of_odd_names_are_passed_by_a_function():
    odd = {"class": 1, 'x=1, y="': 2}
    graph = fx.Graph()
    x = graph.placeholder("x")
    called = graph.call_module("shout", (x,), odd)
    called = graph.call_function(Shout.forward, (None, called), odd)
    method = graph.call_method("add_) or print(", (called,), {})
    graph.output((graph.call_function(getattr, (method, "in")),))
    seen = type("Seen", (), {"in": 7, "add_) or print(": lambda self: self})()

    module = generated(graph, {"shout": Shout()}.__getitem__)
    module.shout.forward = lambda x, **more: seen if more == odd else None

    with pytest.raises(TypeError):
        module(X)  # the function adds numbers to what is none: it was reached with the odd keywords
    module.shout.forward = Shout().forward
    with pytest.raises(AttributeError, match="add_"):
        module(X)
    assert "print(" not in re.sub(r"'[^']*'", "", module.code)


def test_a_module_finds_its_children_by_their_paths_and_keeps_the_users_names():
    module = GraphModule(one_call("class"), "part")
    inner = nn.Module()
    inner.register_buffer("class", torch.ones(4))
    module._modules |= {"class": nn.Linear(4, 4), "inner": inner}

    assert torch.equal(module(X)[0], module._modules["class"](X) + 1)
    assert [name for name, _ in module.named_parameters()] == ["class.weight", "class.bias"]

    module._modules["class"] = nn.Identity()
    assert torch.equal(module(X)[0], X + 1)


def test_a_deep_copy_of_a_module_has_copies_of_its_own():
    module = GraphModule(one_call("code"), "part")
    inner = nn.Module()
    inner.register_buffer("code", torch.ones(4))
    module._modules |= {"code": nn.Linear(4, 4), "inner": inner}

    other = copy.deepcopy(module)

    assert torch.equal(other(X)[0], module(X)[0])
    assert other._modules["code"].weight is not module._modules["code"].weight


def test_calls_are_numbered_behind_the_last_at_sign():
    assert [numbered(key) for key in ("a", "a@2", "@", "a@b", "a@b@3")] == [
        ("a", 0), ("a", 2), ("@", 0), ("a@b", 0), ("a@b", 3),
    ]  # fmt: skip


def test_a_constant_has_a_name_that_the_model_does_not_have():
    assert constant_name(0, ["fc.weight"]) == "_constant_0"
    assert constant_name(0, ["_constant_0"]) not in ("_constant_0",)


def test_a_child_is_looked_for_in_the_tables_of_a_module_before_its_class():
    class Odd(nn.Module):
        kind = "of the class"

    module = Odd()
    module._modules["forward"] = layer = nn.Linear(4, 4)
    module.register_buffer("table", X)

    assert child(module, "forward") is layer and child(module, "table") is X
    assert child(module, "kind") == "of the class"
    with pytest.raises(AttributeError, match="missing"):
        child(module, "missing")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("fc", "fc"),
        ("layers.3.fc", "layers_3_fc"),
        ("3", "_3"),
        ("class", "_class"),
        ("a" * 40, "a" * 40),
        ("a" * 41, "a" * 40),
        ("...", "_"),
        ("forward", "forward_1"),
    ],
)
def test_a_path_is_written_as_a_name_that_reads_like_it(path, name):
    graph = fx.Graph()
    graph.output((graph.call_module(path, (graph.placeholder("x"),)),))

    assert own_names(graph)[1] == {name: path}


def test_a_name_that_is_taken_gets_the_next_number_and_the_shallowest_path_keeps_its_own():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(tuple(graph.call_module(path, (x,)) for path in ("a.b.c", "a_b.c", "a_b_c")))

    assert own_names(graph)[1] == {"a_b_c": "a_b_c", "a_b_c_1": "a_b.c", "a_b_c_2": "a.b.c"}


def test_a_constant_is_called_as_no_tensor_of_the_model():
    assert constant_name(2, []) == "_constant_2"
    assert constant_name(2, ["_constant_2", "_constant_2_"]) == "_constant_2__"
