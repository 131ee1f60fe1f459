"""What goes into and comes out of a model: any nesting of containers, taken apart and put together again.

torch's own pytree does less: it opens no class that nobody registered with it, and no object that holds its holder.
"""

import collections
import copy
import dataclasses
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .walk import filled_slots, slots_of, walk

PLAIN = (torch.Tensor, int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_CLOSED = (torch.nn.Module, type, functools.partial, torch.SymInt, torch.SymFloat, torch.SymBool)
_DEPTH = 6  # how far an unknown object is searched for tensors
_LEAVES = frozenset((torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None)))  # as most leaves are


class _Hole:
    def __repr__(self) -> str:
        return "HOLE"


HOLE = _Hole()


class _Way(NamedTuple):
    """How containers of one kind are taken apart and made again."""

    open: Callable[[Any], tuple[list[Any], Any]]  # what it holds, and what it is beside that: its context
    make: Callable[[Any, Any], Any] | None  # an empty one, of its kind and context; None: it is made when it is filled
    fill: Callable[[Any, Any, Any, list[Any]], Any]  # the empty one, kind, context and children -> the full one
    noted: bool = True  # it may be met again


class _Entry(NamedTuple):
    kind: Any  # of a container; None: a leaf; or one of the two below
    context: Any = None
    size: int = 0  # how many children it has
    way: _Way | None = None


_LEAF = _Entry(None)
_AGAIN, _WEAK = object(), object()  # a container that stood before, or a weak reference to it: context is its number


@dataclass(frozen=True)
class Nesting:
    """How a value is nested: an entry for each container and each leaf, a container before what it holds.

        [h, (h, c)]     list of 2, leaf, tuple of 2, leaf, leaf

    The entries are flat: a chain of a thousand objects is no deeper than another. A container that is held twice, or by
    what it holds, has its entry once, and where it is met again stands its number.
    """

    entries: tuple[_Entry, ...]
    _kinds: tuple[Any, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kinds", tuple([(e.kind, e.size) for e in self.entries]))

    def __hash__(self) -> int:
        return hash(self._kinds)  # what a container is beside its children need not be hashable

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Nesting) or self._kinds != other._kinds:
            return False
        for mine, theirs in zip(self.entries, other.entries, strict=True):
            if mine.way is not theirs.way or not (mine.context is theirs.context or mine.context == theirs.context):
                return False
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> "Nesting":
        return self  # it never changes

    def __repr__(self) -> str:
        words: str = _put_together(self.entries, iter(lambda: "*", ""), _spelled, lambda _: "...")
        return words

    def leaf_counts(self) -> list[int]:
        """How many leaves there are in each of the things that the outermost container holds."""
        counts, left = list[int](), 0  # left: how many entries the present thing still has, as far as is known
        for entry in self.entries[1:]:
            if not left:
                counts.append(0)
                left = 1
            counts[-1] += entry.kind is None
            left += entry.size - 1
        return counts


@dataclass(frozen=True)
class Tree:
    """The shape of a nested value: its containers, its constants, and a hole for each of its live leaves."""

    spec: Nesting
    constants: tuple[Any, ...]  # one entry for each leaf; `HOLE` where a live value belongs
    fresh: tuple[int, ...] = ()  # the constants of which every value has a copy of its own

    def build(self, values: list[Any] | tuple[Any, ...]) -> Any:
        """The nested value with `values` in its holes, in order."""
        feed, memo = iter(values), dict[int, Any]()
        leaves = [next(feed) if c is HOLE else c for c in self.constants]
        for i in self.fresh:
            leaves[i] = _copied(leaves[i], memo)
        return unflatten(leaves, self.spec)

    def renewing(self, constants: Sequence[Any]) -> "Tree":
        """This tree, with a copy in every value of those constants that another run of the same code made anew.

        Args:
            constants: of that run; a live value may stand for a hole.

        Raises:
            CaptureError: one of them cannot be copied.
        """
        fresh, misfits = [], []
        for i, (mine, theirs) in enumerate(zip(self.constants, constants, strict=True)):
            if mine is not theirs and not isinstance(mine, (*PLAIN, _Hole)):
                fresh.append(i)
                what = f"a {type(mine).__name__} among the results"
                if isinstance(mine, Iterator):
                    misfits.append(f"{what} computes only when it is asked, and once: return a list or a tuple")
                    continue
                try:
                    _copied(mine, {})
                except Exception as error:
                    misfits.append(f"{what} cannot be made anew in every call: {error}")
        if misfits:
            raise CaptureError(misfits)
        return replace(self, fresh=tuple(fresh))


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy that has the same modules and tensors, also where it is a method or a partial of one."""
    for _, _, held in walk(value, _bound, _DEPTH):
        if isinstance(held, torch.nn.Module | torch.Tensor):
            memo[id(held)] = held
    return copy.deepcopy(value, memo)


def field_of(value: Any, name: str) -> Any:
    """What a model's output holds under a name: an entry of a dict, or an attribute. None: nothing."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


# ---- apart and together


def flatten(value: Any) -> tuple[list[Any], Nesting]:
    """The leaves of a nested value, and how they are nested.

    Taken apart are the containers that torch's pytree knows, and objects of any other class that hold tensors.
    """
    leaves, entries, pending = list[Any](), list[_Entry](), [value]
    seen: dict[int, tuple[int, Any]] = {}  # id -> number of each container that may be met again; kept alive
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind in _LEAVES:
            leaves.append(value)
            entries.append(_LEAF)
        elif (known := seen.get(id(value))) is not None:
            entries.append(_Entry(_AGAIN, known[0]))
        elif kind is weakref.ref and (known := seen.get(id(value()))) is not None:
            entries.append(_Entry(_WEAK, known[0]))
        elif (way := _way_of(kind) or _opened(value, seen)) is None:
            leaves.append(value)
            entries.append(_LEAF)
        else:
            if way.noted:
                seen[id(value)] = (len(seen), value)
            children, context = way.open(value)
            entries.append(_Entry(kind, context, len(children), way))
            pending += children[::-1]
    return leaves, Nesting(tuple(entries))


def unflatten(leaves: Iterable[Any], spec: Nesting) -> Any:
    """The nested value again, each container of its own type, and what was held twice the same object twice.

    Raises:
        CaptureError: a container that cannot be made before what it holds holds itself.
    """
    made: dict[int, Any] = {}
    number = 0
    for entry in spec.entries:
        if entry.way is not None and entry.way.noted:
            if entry.way.make is not None:
                made[number] = entry.way.make(entry.kind, entry.context)
            number += 1

    def container(entry: _Entry, at: int, children: list[Any]) -> Any:
        way = entry.way or _IN_ORDER
        result = way.fill(made.get(at), entry.kind, entry.context, children)
        if way.noted:
            made[at] = result
        return result

    def again(entry: _Entry) -> Any:
        if entry.context not in made:
            raise CaptureError(["an object that others registered with torch's pytree holds itself"])
        value = made[entry.context]
        return value if entry.kind is _AGAIN else weakref.ref(value)

    return _put_together(spec.entries, iter(leaves), container, again)


def _put_together(
    entries: tuple[_Entry, ...],
    leaves: Iterator[Any],
    container: Callable[[_Entry, int, list[Any]], Any],
    again: Callable[[_Entry], Any],
) -> Any:
    """What `container` makes of the outermost entry: of its number, if it is noted, and of what was made of its
    children before.
    """
    number, open_ = 0, list[tuple[_Entry, int, list[Any]]]()
    value: Any = None
    for entry in entries:
        if entry.kind is None:
            value = next(leaves)
        elif entry.way is None:
            value = again(entry)
        else:
            open_.append((entry, number if entry.way.noted else -1, []))
            number += entry.way.noted
            if entry.size:
                continue
            value = container(*open_.pop())
        while open_:
            parent, _, children = open_[-1]
            children.append(value)
            if len(children) < parent.size:
                break
            value = container(*open_.pop())
    return value


def _spelled(entry: _Entry, _: int, children: list[str]) -> str:
    names = entry.context[0] + entry.context[1] if entry.way in (_OBJECT, _BUILT) else entry.context
    if entry.way in (_BY_KEY, _OBJECT, _BUILT):
        children = [f"{name}={child}" for name, child in zip(names, children, strict=False)] or children
    return f"{entry.kind.__name__}({', '.join(children)})"


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """The nested value with what `function` makes of each tensor in its place."""
    leaves, spec = flatten(value)
    return unflatten([function(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)


def take_apart(value: Any, live: Callable[[Any], bool] = torch.is_tensor) -> tuple[list[Any], Tree]:
    """The live leaves of a nested value, and the tree that takes them back."""
    leaves, spec = flatten(value)
    return [leaf for leaf in leaves if live(leaf)], Tree(spec, tuple(HOLE if live(leaf) else leaf for leaf in leaves))


def opens(leaf: Any) -> bool:
    """Whether an object of an unknown class holds tensors, so that it must be taken apart."""
    return _opened(leaf, {}) is not None


# ---- how containers of a kind are opened and made


def _fill_list(made: Any, _: Any, __: Any, children: list[Any]) -> Any:
    made.extend(children)
    return made


def _fill_dict(made: Any, _: Any, keys: Any, children: list[Any]) -> Any:
    made.update(zip(keys, children, strict=True))
    return made


def _open_defaults(value: Any) -> tuple[list[Any], Any]:
    return list(value.values()), (value.default_factory, tuple(value))


def _fill_defaults(made: Any, kind: Any, context: Any, children: list[Any]) -> Any:
    return _fill_dict(made, kind, context[1], children)


def _view(of: str) -> _Way:
    """The way of a dict's keys, values or items: those of a new dict."""

    def fill(_: Any, __: Any, keys: Any, children: list[Any]) -> Any:
        return getattr(dict(zip(keys, children, strict=True)), of)()

    return _Way(lambda v: (list(v.mapping.values()), tuple(v.mapping)), None, fill, noted=False)


_IN_ORDER = _Way(lambda v: (list(v), None), None, lambda _, kind, __, children: kind(children), noted=False)
_BY_KEY = _Way(lambda v: (list(v.values()), tuple(v)), lambda kind, _: kind(), _fill_dict)
_BUILTIN: dict[Any, _Way] = {
    tuple: _IN_ORDER,
    torch.Size: _IN_ORDER,  # torch hands sizes back as tuples
    list: _Way(lambda v: (v, None), lambda kind, _: kind(), _fill_list),
    dict: _BY_KEY,
    collections.OrderedDict: _BY_KEY,
    collections.defaultdict: _Way(_open_defaults, lambda kind, context: kind(context[0]), _fill_defaults),
    **{type(getattr({}, of)()): _view(of) for of in ("keys", "values", "items")},
    collections.deque: _Way(lambda v: (list(v), v.maxlen), lambda kind, size: kind(maxlen=size), _fill_list),
}


def _way_of(kind: type) -> _Way | None:
    """The way of a kind that torch's pytree knows too: now, since classes are registered at any time."""
    if (way := _BUILTIN.get(kind)) is not None:
        return way
    if kind in pytree.SUPPORTED_NODES or pytree.is_namedtuple_class(kind):
        return _FOREIGN
    return None


def _open_foreign(value: Any) -> tuple[list[Any], Any]:
    children, context = _node(type(value)).flatten_fn(value)
    return list(children), context


def _node(kind: Any) -> Any:
    known: dict[Any, Any] = pytree.SUPPORTED_NODES
    return known[kind] if kind in known else known[collections.namedtuple]


_FOREIGN = _Way(_open_foreign, None, lambda _, kind, context, children: _node(kind).unflatten_fn(children, context))


def _opened(value: Any, seen: Mapping[int, Any]) -> _Way | None:
    """The way of an object of an unknown class; None: it holds no tensors, nor what is taken apart already."""
    if isinstance(value, (*PLAIN, *_CLOSED, weakref.ref)) or inspect.isroutine(value):
        return None
    for _, _, held in walk(value, contents, _DEPTH):
        if isinstance(held, torch.Tensor) or id(held) in seen:
            return _BUILT if isinstance(value, tuple | frozenset) else _OBJECT  # nothing is put into these later
    return None


def contents(value: Any) -> Any:
    """The table of what an object holds; None: it stays closed."""
    if isinstance(value, (*PLAIN, torch.nn.Module, type)):
        return None
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, dict | list | tuple | set | frozenset):
        return value if type(value).__module__ == "builtins" else [*_items(value), *fields_of(value).values()]
    return fields_of(value)


def _bound(value: Any) -> Any:
    """What an object holds; of a method its owner, and of a partial what it will pass on."""
    if isinstance(value, types.MethodType):
        return (value.__self__,)
    return (value.func, value.args, value.keywords) if isinstance(value, functools.partial) else contents(value)


def fields_of(value: Any) -> dict[str, Any]:
    """What an object holds: the fields of a dataclass, slots and attributes."""
    if dataclasses.is_dataclass(value):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
        return named | filled_slots(value) | getattr(value, "__dict__", {})
    fields = filled_slots(value)
    if isinstance(value, BaseException):
        fields["args"] = value.args
    return fields | getattr(value, "__dict__", {})


def _items(value: Any) -> list[Any]:
    """What an object holds as the list, dict, set or tuple that it is."""
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, _ITERATED) else []


_ITERATED = (list, tuple, set, frozenset)
_Context = tuple[tuple[str, ...], tuple[Any, ...], Any]  # names of fields, keys of a dict, its default factory


def _open_object(value: Any) -> tuple[list[Any], _Context]:
    fields = fields_of(value)
    keys = tuple(value) if isinstance(value, dict) else ()
    return [*fields.values(), *_items(value)], (tuple(fields), keys, getattr(value, "default_factory", None))


def _make_object(kind: Any, context: _Context) -> Any:
    """Not through `__init__`: it may take other arguments, or count instances."""
    try:
        result = object.__new__(kind)
    except TypeError:  # it stands on a class of Python's own: a list, a dict, an exception
        result = kind.__new__(kind)
    if isinstance(result, collections.defaultdict):
        result.default_factory = context[2]
    return result


def _fill_object(made: Any, kind: Any, context: _Context, children: list[Any]) -> Any:
    names, keys, _ = context
    for name, child in zip(names, children, strict=False):
        _set(made, name, child)
    items = children[len(names) :]
    if isinstance(made, dict):
        base = collections.OrderedDict if isinstance(made, collections.OrderedDict) else dict
        for key, item in zip(keys, items, strict=True):
            base.__setitem__(made, key, item)
    elif isinstance(made, list):
        list.extend(made, items)
    elif isinstance(made, set):
        set.update(made, items)
    return made


def _fill_built(_: Any, kind: Any, context: _Context, children: list[Any]) -> Any:
    """A tuple or frozenset of a class of its own."""
    base, count = (tuple if issubclass(kind, tuple) else frozenset), len(context[0])
    result = base.__new__(kind, children[count:])
    for name, child in zip(context[0], children, strict=False):
        _set(result, name, child)
    return result


_OBJECT = _Way(_open_object, _make_object, _fill_object)
_BUILT = _Way(_open_object, None, _fill_built)


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute past properties and setters of the class."""
    if (slot := slots_of(type(owner)).get(name)) is not None:
        slot.__set__(owner, value)
    elif hasattr(owner, "__dict__") and not (isinstance(owner, BaseException) and name == "args"):
        owner.__dict__[name] = value
    else:
        object.__setattr__(owner, name, value)


def rebuild(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Map `leaf` over what lists, tuples, dicts and slices hold."""
    if type(value) in (list, tuple, torch.Size):
        items = [rebuild(v, leaf) for v in value]
        return items if type(value) is list else tuple(items)
    if type(value) is dict:
        return {k: rebuild(v, leaf) for k, v in value.items()}
    if type(value) is slice:
        return slice(*rebuild((value.start, value.stop, value.step), leaf))
    return leaf(value)
