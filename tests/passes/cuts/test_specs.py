"""Every way to say where to cut, and the exact words for every way to be wrong about it."""

import re

import pytest
import torch
from kit.partition_programs import captured
from kit.titles import titled
from torch import nn

import dnigraph.passes.graph.mark as marker
from dnigraph.passes.cuts.names import carries
from dnigraph.passes.cuts.specs import after, balanced, before, resolve, wants_time
from dnigraph.passes.errors import CutError
from dnigraph.passes.plan.plan import Plan


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x):
        return x + self.act(self.fc(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.shared = nn.Linear(4, 4)
        self.lstm = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.spare = nn.Linear(4, 4)
        self.pick = Pick()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = marker.cut(x, "middle")
        x = self.shared(self.shared(x).relu())
        x = marker.cut(self.lstm(x))
        return self.head(x) + self.pick(x).sum()


class Pick(nn.Module):
    def forward(self, x):
        return x.argmax(1)


def graph_of(model):
    return captured(model, torch.randn(2, 4)).graph


MODEL = Model()
WHOLE = captured(MODEL, torch.randn(2, 4))
GRAPH = WHOLE.graph
PATHS = [path for path, _ in MODEL.named_modules() if path]


def labelled(edges, whole=WHOLE):
    """Edges by the labels of their nodes."""
    return [f"{whole.label(a.name)} > {whole.label(b.name)}" for a, b in edges]


def cut(spec, whole=WHOLE, **options):
    return labelled(resolve(whole.graph, spec, PATHS, **options).edges, whole)


def misfits(spec, graph=GRAPH):
    with pytest.raises(CutError) as caught:
        resolve(graph, spec, PATHS)
    return list(caught.value.misfits)


# ---- what one may say

STEM = ["stem > blocks.0.fc", "stem > add"]
FIRST, SECOND = ["add > blocks.1.fc", "add > add@2"], ["add@2 > middle"]
ONCE, AGAIN = ["shared > relu"], ["shared@2 > lstm.0"]


@pytest.mark.parametrize(
    "spec, edges",
    [
        ("stem", STEM),
        (after("stem"), STEM),
        (before("blocks.0"), STEM),
        ("blocks.0", FIRST),
        ("blocks.0.fc", ["blocks.0.fc > blocks.0.act"]),
        (before("blocks.0.act"), ["blocks.0.fc > blocks.0.act"]),
        ("blocks.*", FIRST + SECOND),
        ("blocks.?", FIRST + SECOND),
        ("blocks.[1]", SECOND),
        ("**.fc", ["blocks.0.fc > blocks.0.act", "blocks.1.fc > blocks.1.act"]),
        ("re:blocks\\.\\d", FIRST + SECOND),
        (before("re:blocks\\.\\d"), STEM + FIRST),
        ("shared", ONCE + AGAIN),
        ("shared@1", ONCE),
        ("shared@2", AGAIN),
        ("relu", ["relu > shared@2"]),
        ("add_?", SECOND),
        (("stem", "blocks.0"), STEM),
        (("stem", "blocks.0.fc"), ["stem > blocks.0.fc"]),
        (("shared", "relu"), ["shared > relu"]),
        (Block, FIRST + SECOND),
        (before(Block), STEM + FIRST),
        (lambda node: node.name == "relu", ["relu > shared@2"]),
        ("middle", ["middle > shared"]),
        (marker.cut, ["middle > shared", "cut > head"]),
        (None, ["middle > shared", "cut > head"]),
        (["stem", before("relu")], STEM + ONCE),
        (("stem", after("blocks.0"), "middle"), STEM + FIRST + ["middle > shared"]),
        ((name for name in ["stem", "blocks.1"]), STEM + SECOND),
        ({"stem"}, STEM),
        ([], []),
        ((), []),
    ],
    ids=titled,
)
def test_a_cut_can_be_said_in_many_ways(spec, edges):
    assert cut(spec) == edges


def test_a_star_stays_inside_one_name_of_a_path():
    assert misfits("*.fc") and cut("blocks.*.fc") == cut("**.fc")


def test_a_saved_plan_cuts_where_it_cut():
    edges = tuple((WHOLE.node(a).name, WHOLE.node(b).name) for a, b in [("stem", "add"), ("relu", "shared@2")])
    plan = Plan("Model", "record", edges, (), ())

    assert cut(plan) == ["stem > add", "relu > shared@2"]
    assert cut([plan, "blocks.1"]) == ["stem > add", "add@2 > middle", "relu > shared@2"]


def test_edges_come_in_the_order_of_the_graph():
    assert cut(["shared", "stem"]) == STEM + ONCE + AGAIN


def test_no_cuts_and_no_marks_are_noted():
    plain = graph_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    resolved = resolve(plain, None)

    assert resolved.edges == ()
    assert resolved.notes == ("no cuts are given and the model carries no mark: nothing is cut",)


def test_a_place_named_twice_is_cut_once_and_noted():
    resolved = resolve(GRAPH, ["stem", "blocks.0", before("blocks.0")], PATHS)

    assert labelled(resolved.edges) == STEM + FIRST
    assert resolved.notes == ("cut before('blocks.0') is the same place as cut 'stem'",)


def test_what_a_pattern_cannot_cut_is_left_out_and_noted():
    resolved = resolve(GRAPH, "re:stem|pick", PATHS)

    assert labelled(resolved.edges) == STEM
    assert resolved.notes == (
        "cut 're:stem|pick': 'pick' makes only int64 values, which carry no gradient; "
        "there is nothing to decouple; left out",
    )


# ---- what one may get wrong


@pytest.mark.parametrize(
    "spec, words",
    [
        ("blocs.0", "cut 'blocs.0': the model has no such module, mark or node; nearest: blocks.0, blocks.1"),
        ("zzz", "cut 'zzz': the model has no such module, mark or node"),
        ("shared@3", "cut 'shared@3': the model has no such module, mark or node; nearest: shared@2, shared"),
        ("", "cut '': an empty name names no place"),
        ("output", "cut 'output': the model has no such module, mark or node"),
        ("layer*", "cut 'layer*': matches none of 14 modules that ran"),
        ("re:layer.*", "cut 're:layer.*': matches none of 14 modules that ran"),
        ("re:(", "cut 're:(': is no regular expression: missing ), unterminated subpattern at position 0"),
        ("spare", "cut 'spare': is a module that did not run in this call"),
        ("x", "cut 'x': 'x' is an input of the model; cut after something that learns"),
        (before("stem"), "cut before('stem'): nothing that learns flows into 'stem'; it begins the model"),
        ("pick", "cut 'pick': 'pick' makes only int64 values, which carry no gradient; there is nothing to decouple"),
        (nn.Conv2d, "cut Conv2d: no module of this type ran"),
        (
            ("stem", "head"),
            "cut ('stem', 'head'): nothing that learns flows straight from 'stem' to 'head'; "
            "for two cuts say ['stem', 'head']",
        ),
        (int, "cut int: a class that is no module names no place"),
        (
            3.5,
            "cut 3.5: a float names no place; say a module path, before(...), after(...), a pattern, an edge (a, b), "
            "a module type, a function of a node, dg.cut, a plan, or a number of parts",
        ),
        ({"stem": 1}, "cut {'stem': 1}: a dict names no place"),
        (True, "cut True: a bool names no place"),
        ([None], "cut None: a NoneType names no place"),
        (MODEL.stem, "cut Linear(...): a Linear names no place; say a module path"),
        (["stem", ["head"]], "cut ['head']: a list names no place"),
        (Plan("M", "record", (("gone", "add"),), (), ()), "saved plan: the graph has no node 'gone'"),
        (Plan("M", "record", (("stem", "relu"),), (), ()), "saved plan: relu does not read stem"),
    ],
    ids=titled,
)
def test_a_cut_that_does_not_fit_says_why(spec, words):
    (said,) = misfits(spec)

    assert said.startswith(words)


def test_the_last_module_ends_the_model():
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    assert misfits("1", graph) == ["cut '1': matches '1', which ends the model; cut one of its inputs"]


def test_inside_a_layer_that_is_kept_whole_there_is_no_place():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    model = Attends()
    with pytest.raises(
        CutError, match=re.escape("lies inside 'attention', which is kept whole; cut before or after that")
    ):
        resolve(graph_of(model), "attention.out_proj", [path for path, _ in model.named_modules()])


def test_a_model_without_marks_has_nothing_for_the_mark_to_name():
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    assert misfits(marker.cut, graph) == ["cut cut: the model carries no mark"]


def test_a_function_that_finds_nothing_or_fails_is_named():
    def never(node):
        return False

    def fails(node):
        return node.meta["no such thing"]

    assert misfits([never, fails]) == [
        "cut never: says yes to no node",
        "cut fails: fails on node 'x': KeyError: 'no such thing'",
    ]


def test_all_misfits_come_at_once_in_the_order_of_the_cuts():
    with pytest.raises(CutError) as caught:
        resolve(GRAPH, ["stm", "stem", ("blocks.7", "heat"), before("stem")], PATHS)

    assert str(caught.value) == (
        "4 cuts do not fit the model:\n"
        "  * cut 'stm': the model has no such module, mark or node; nearest: stem, lstm, lstm_1\n"
        "  * cut 'blocks.7': the model has no such module, mark or node; nearest: blocks.1, blocks.0, blocks.1.fc\n"
        "  * cut 'heat': the model has no such module, mark or node; nearest: head, shared\n"
        "  * cut before('stem'): nothing that learns flows into 'stem'; it begins the model"
    )


def test_a_layer_that_only_numbers_without_a_gradient_flow_into_begins_what_learns():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.of, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.of(x + 1))

    graph = captured(Words(), torch.zeros(2, dtype=torch.long)).graph

    with pytest.raises(CutError, match="nothing that learns flows into 'of'; it begins the model"):
        resolve(graph, before("of"), ["of", "head"])


@pytest.mark.parametrize("place", [before, after])
@pytest.mark.parametrize(
    "whole",
    [Plan("M", "record", (("stem", "add"),), (), ()), 2, balanced(2), ("stem", "head"), before("stem"), after("stem")],
    ids="plan number balanced edge before after".split(),
)
def test_before_and_after_take_places_and_no_whole_cuts(place, whole):
    (said,) = misfits(place(whole))

    assert "names no place" in said


def test_one_misfit_is_told_in_the_singular():
    with pytest.raises(CutError, match=r"^1 cut does not fit the model:\n  \* cut 'zzz'"):
        resolve(GRAPH, "zzz", PATHS)


def test_where_it_is_not_strict_what_does_not_fit_is_passed_over():
    assert cut(["zzz", "stem", before("stem")], strict=False) == STEM


# ---- what carries a gradient


def test_inputs_parameters_and_integers_carry_none():
    by_name = {node.name: node for node in GRAPH.nodes}

    assert not carries(by_name["x"]) and not carries(by_name["argmax"])
    assert carries(by_name["stem"]) and carries(by_name["relu"])


# ---- marks


def test_a_mark_on_several_tensors_cuts_them_all():
    class Marks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            held = marker.cut({"a": self.a(x), "b": (self.b(x), None)}, "both")
            return held["a"] + held["b"][0]

    assert cut("both", captured(Marks(), torch.randn(2, 4))) == ["both > add", "both@2 > add"]


def test_what_can_be_looked_through_once_is_not_used_up_by_the_question_of_time():
    cuts = iter(["stem", "head"])

    assert wants_time(cuts) is False and list(cuts) == ["stem", "head"]
    assert wants_time(balanced(2, cost="time")) is True and wants_time([balanced(2), "stem"]) is False
