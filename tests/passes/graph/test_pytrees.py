"""Nested values of any class come apart and together again."""

import collections
import copy
import dataclasses
import functools
import threading
import time
import types
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from kit.models import CLASSES, Chain
from torch.utils import _pytree as pytree

import dnigraph as dg
from dnigraph.passes.errors import CaptureError
from dnigraph.passes.graph.equality import equal
from dnigraph.passes.graph.pytrees import HOLE, flatten, take_apart, unflatten

T = torch.arange(3.0)


@dataclasses.dataclass
class Record:
    y: Any
    count: int = 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    y: Any


class Pair(NamedTuple):
    first: Any
    second: Any


class Own:
    made = 0

    def __init__(self, y):
        type(self).made += 1
        self.y = y


class Callable(Own):
    def __call__(self):
        return self.y


class Slotted:
    __slots__ = ("extra", "y")

    def __init__(self, y):
        self.y = y


class Store:
    """Refers back to the whole that it is a part of, as the stores of graph data do."""

    def __init__(self, y, whole):
        self.y, self.whole = y, weakref.ref(whole)

    @property
    def key(self):
        return self.__dict__["key"]


class Whole:
    def __init__(self, y):
        self.store = Store(y, self)
        self.stores = {"a": Store(y + 1, self)}
        self.store.__dict__["key"] = "name"


class Knot:
    """Knows who holds it, and what it holds."""

    def __init__(self, y, *children):
        self.y, self.children, self.parent = y, list(children), None
        for child in children:
            child.parent = self


class Mistake(ValueError):
    pass


class Names(dict):
    pass


class Sorted(collections.OrderedDict):
    pass


class Few(tuple):
    pass


class Rows(list):
    pass


@pytest.mark.parametrize(
    "value",
    [
        T,
        [T, (T, {"a": T, "b": None}), 3, "text"],
        collections.OrderedDict(b=T, a=1),
        Pair(T, Pair(None, T)),
        Record(T),
        Frozen([T]),
        Own(T),
        Names(b=T, a=Rows([T, 1])),
        Own(Record(Own([T, None]))),
        Callable(T),
        Slotted([T]),
        Sorted(b=T, a=1),
        Few([T, 2]),
        Mistake("wrong", T),
        types.SimpleNamespace(y=T, n=2),
        collections.defaultdict(list, b=[T]),
        collections.deque([T, 1], maxlen=3),
        {T},
        {"b": T, "a": [T]}.values(),
        {"b": T, "a": [T]}.items(),
        {"b": T, "a": [T]}.keys(),
        (),
        None,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_taken_apart_can_be_built_again(value):
    tensors, tree = take_apart(value)
    doubled = tree.build([t * 2 for t in tensors])

    assert type(doubled) is type(value)
    found, structure = flatten(doubled)
    leaves, original = flatten(value)
    assert structure == original
    for one, other in zip(found, leaves, strict=True):
        assert torch.equal(one, other * 2) if isinstance(other, torch.Tensor) else one == other


def test_constants_stay_in_the_tree_and_tensors_leave_holes():
    tensors, tree = take_apart({"a": T, "b": [3, None, "x"]})

    assert tensors == [T]
    assert tree.constants[0] is HOLE and tree.constants[1:] == (3, None, "x")


def test_an_object_without_tensors_is_a_constant():
    thing = object()

    leaves, _ = flatten([thing, T])

    assert leaves[0] is thing


def test_building_an_object_does_not_run_its_constructor():
    value = Own(T)
    before = Own.made

    tensors, tree = take_apart(value)
    tree.build(tensors)

    assert Own.made == before


def test_functions_and_modules_are_never_taken_apart():
    layer, function = torch.nn.Linear(2, 2), lambda: T

    leaves, _ = flatten([layer, function])

    assert leaves == [layer, function]


def test_what_refers_back_to_its_whole_refers_to_the_new_one():
    whole = Whole(T)

    tensors, tree = take_apart(whole)
    built = tree.build([t * 2 for t in tensors])

    assert torch.equal(built.store.y, T * 2)
    assert built.store.whole() is built
    assert built.stores["a"].whole() is built
    assert built.store.key == "name"
    assert whole.store.whole() is whole


def test_two_objects_of_one_class_have_one_structure():
    _, one = flatten(Whole(T))
    _, other = flatten(Whole(T + 1))

    assert one == other


def test_objects_that_hold_each_other_hold_each_other_again():
    root = Knot(T, Knot(T + 1), Knot(T + 2, Knot(T + 3)))

    tensors, tree = take_apart(root)
    built = tree.build([t * 2 for t in tensors])

    assert len(tensors) == 4
    assert built is not root and built.parent is None
    assert [child.parent is built for child in built.children] == [True, True]
    leaf = built.children[1].children[0]
    assert torch.equal(leaf.y, 2 * (T + 3)) and leaf.parent is built.children[1]
    assert take_apart(built)[1].spec == tree.spec


def test_what_is_held_twice_is_one_object_again():
    row, store = [T], Own(T)
    ring = {"row": row}
    ring["ring"] = ring

    tensors, tree = take_apart((row, row, store, [store], ring))
    first, second, one, (other,), back = tree.build(tensors)

    assert len(tensors) == 2
    assert first is second is back["row"] and first is not row
    assert one is other and one is not store
    assert back["ring"] is back


def test_sharing_is_part_of_the_structure():
    row = [T]

    assert flatten((row, row))[1] != flatten(([T], [T]))[1]
    assert flatten((row, row))[1] == flatten((row, row))[1]


def test_a_part_without_tensors_goes_with_the_whole_that_it_refers_to():
    whole = Knot(T, Knot(None))

    tensors, tree = take_apart(whole)
    built = tree.build(tensors)

    assert built.children[0].parent is built
    assert whole.children[0].parent is whole


def test_a_chain_of_thousands_comes_apart_and_together():
    first = last = Own(T)
    for _ in range(3000):
        last.next = last = Own(T)

    leaves, spec = flatten(first)
    built, length = unflatten(leaves, spec), 1
    while hasattr(built, "next"):
        built, length = built.next, length + 1

    assert length == len(leaves) == 3001
    assert spec == flatten(first)[1] and hash(spec) == hash(flatten(first)[1])


def test_torch_s_own_pytree_learns_nothing_of_classes_that_are_opened():
    class Data(Own):
        pass

    flatten(Data(T))

    assert pytree.tree_leaves(Data(T))[0] is not T
    pytree.register_pytree_node(Data, lambda v: ([v.y], None), lambda items, _: Data(items[0]))
    try:
        leaves, spec = flatten([Data(T)])
        assert leaves[0] is T and type(unflatten([T], spec)[0]) is Data
    finally:
        pytree._deregister_pytree_node(Data)


def test_a_structure_outlives_that_its_class_is_registered():
    class Data(Own):
        pass

    leaves, spec = flatten(Data(T))
    pytree.register_pytree_node(Data, lambda v: ([v.y, 1], None), lambda items, _: Data(items[0]))
    try:
        assert unflatten(leaves, spec).y is T
        assert flatten(Data(T))[1] != spec
    finally:
        pytree._deregister_pytree_node(Data)


def test_what_a_registered_class_cannot_put_together_is_refused():
    class Data(Own):
        pass

    pytree.register_pytree_node(Data, lambda v: ([v.y], None), lambda items, _: Data(items[0]))
    try:
        ring = Data(T)
        ring.y = [ring]
        leaves, spec = flatten(ring)
        with pytest.raises(CaptureError, match="holds itself"):
            unflatten(leaves, spec)
    finally:
        pytree._deregister_pytree_node(Data)


def test_leaves_are_counted_by_what_the_outermost_container_holds():
    assert flatten([T, [], (T, {"a": [T, 1]}), Own(T), None])[1].leaf_counts() == [1, 0, 3, 1, 1]


def test_a_common_call_costs_no_more_than_with_torch_s_pytree():
    call = ((T, T, {"mask": T, "causal": True}), {"cache": [(T, T)] * 6})

    def seconds(function):
        times = []
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(20):
                function(call)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(flatten) < 2 * seconds(pytree.tree_flatten)  # in fact less than once: room for noise


def test_constants_that_each_run_makes_anew_are_copied_and_others_are_not():
    shared = Own(None)
    tree = take_apart([T, {1, 2}, shared, "text"])[1]

    renewed = tree.renewing(take_apart([T, {1, 2}, shared, "text"])[1].constants)
    one, other = renewed.build([T]), renewed.build([T])

    assert renewed.fresh == (1,)
    assert one[1] == other[1] == {1, 2} and one[1] is not other[1]
    assert one[2] is shared


@pytest.mark.parametrize("make", [lambda: (i for i in [1]), lambda: iter([1]), lambda: zip([1], [2], strict=True)])
def test_constants_that_end_are_refused_with_the_way_out(make):
    with pytest.raises(CaptureError) as refused:
        take_apart([make(), T, make()])[1].renewing([make(), T, make()])

    what = f"a {type(make()).__name__} among the results computes only when it is asked, and once"
    assert list(refused.value.reasons) == [f"{what}: return a list or a tuple"] * 2


def test_constants_that_nobody_can_copy_are_refused_and_others_of_their_kind_are_not():
    lock = threading.Lock()

    assert take_apart([lock])[1].renewing([lock]).fresh == ()
    with pytest.raises(CaptureError, match="a lock among the results cannot be made anew in every call: cannot pickle"):
        take_apart([lock])[1].renewing([threading.Lock()])


def test_a_fresh_constant_stays_on_its_module():
    layer = torch.nn.Linear(2, 2)

    tree = take_apart([types.SimpleNamespace(layer=layer)])[1]
    (built,) = tree.renewing([types.SimpleNamespace(layer=layer)]).build([])

    assert built.layer is layer and built is not tree.constants[0]


class Coder(torch.nn.Linear):
    def decode(self, h):
        return self(h)


@pytest.mark.parametrize(
    "bind",
    [
        lambda layer: layer.decode,
        lambda layer: functools.partial(layer.decode, 2),
        lambda layer: functools.partial(torch.add, layer.weight),
        lambda layer: functools.partial(torch.add, other=layer.weight),
        lambda layer: [functools.partial(max, [layer.decode])],
    ],
    ids=["method", "partial of a method", "partial of a weight", "by name", "a method in it"],
)
def test_methods_and_partials_stay_those_of_the_module_and_its_weights(bind):
    layer = Coder(2, 2)

    tree = take_apart([bind(layer)])[1]
    (built,) = tree.renewing([bind(layer)]).build([])

    assert equal(built, bind(layer))
    assert _modules_and_tensors(built) == _modules_and_tensors(bind(layer)) != set()


def _modules_and_tensors(value):
    if isinstance(value, types.MethodType):
        value = [value.__self__]
    if isinstance(value, functools.partial):
        value = [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, list):
        return set().union(*map(_modules_and_tensors, value))
    return {id(value)} if isinstance(value, torch.nn.Module | torch.Tensor) else set()


def test_sizes_among_the_results_come_back_as_sizes():
    leaves, spec = flatten({"h": T, "shape": T.shape, "none": torch.Size([])})

    again = unflatten(leaves, spec)

    assert again["shape"] == T.shape
    assert [type(v) for v in again.values()] == [torch.Tensor, torch.Size, torch.Size]


@pytest.mark.parametrize("capture", ["record", "export"])
def test_a_model_may_return_sizes_and_distributions(capture):
    class Sized(Chain):
        def forward(self, x):
            y = super().forward(x)
            return y, y.shape, torch.distributions.Normal(y, y.exp(), validate_args=False)

    dm = dg.decouple(Sized(), "bn", (torch.randn(4, 6),), boundary="oracle", capture=capture)

    _, shape, law = dm(torch.randn(5, 6))
    assert type(shape) is type(law.batch_shape) is torch.Size
    assert shape == law.batch_shape == (5, CLASSES)


class Counts(collections.defaultdict):
    pass


def test_a_dict_with_defaults_of_a_class_of_its_own_makes_them_still():
    value = Counts(list, a=[T])

    leaves, spec = flatten(value)
    again = unflatten(leaves, spec)

    assert type(again) is Counts and again["a"][0] is T
    assert again["new"] == [] and again.default_factory is list


def test_a_tuple_of_a_class_of_its_own_keeps_its_attributes():
    value = Few([T, 2])
    value.note = "mine"

    leaves, spec = flatten(value)
    again = unflatten(leaves, spec)

    assert type(again) is Few and again[0] is T and again[1] == 2
    assert again.note == "mine"


@pytest.mark.parametrize(
    ("one", "other"),
    [([T], (T,)), ([T], [T, T]), ({"a": T}, {"b": T}), ([T, [T]], [[T], T])],
    ids="type length keys order".split(),
)
def test_what_is_nested_in_another_way_has_another_nesting(one, other):
    assert (flatten(one)[1] == flatten(other)[1]) is False
    assert flatten(one)[1] == flatten(one)[1] and hash(flatten(one)[1]) == hash(flatten(one)[1])


def test_a_nesting_is_no_other_thing_and_its_copy_is_itself():
    spec = flatten([T, {"a": 1}])[1]

    assert (spec == [T]) is False
    assert copy.deepcopy(spec) is spec
    assert str(spec) == "list(*, dict(a=*))"


def test_a_hole_says_that_it_is_one():
    assert str(take_apart([T, 1])[1].constants) == "(HOLE, 1)"
