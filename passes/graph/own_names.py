"""Graphs as Python source: what a user named is spoken of by names of our own, so that no name of his is ever written.

    graph    x ─► call_module 'layers.3' ─► get_attr 'a"), evil("' ─► ...
    source   def forward(self, x): layers_3 = self.layers_3(x); a_evil = self.a_evil; ...

fx writes the names of modules, tensors and arguments into source text as they are, and runs it. A name may come with a
configuration or a checkpoint; it may be a keyword, hold quotes, or be what a `GraphModule` calls one of its own.
"""

import contextlib
import copy
import functools
import keyword
import linecache
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import fx, nn
from torch.fx import graph_module

from .nodes import Call

_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
PLAIN = "_plain_tensors"  # the table of tensors that are plain attributes of what a module stands for
_TABLES = ("_modules", "_parameters", "_buffers", PLAIN)
_LENGTH = 40  # letters of a path that its name is made of


def is_plain(name: str) -> bool:
    """Whether a name can be written into source as it is."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def own_names(graph: fx.Graph) -> tuple[fx.Graph, dict[str, str]]:
    """A copy of a graph that can be written as source, and for each name in it the path that it stands for.

    Guarantees:
        `graph` is unchanged, and the copy computes the same.
        Its targets of modules and tensors are names of ours; its arguments are called as its nodes are.
        No attribute, method or keyword is written that is no plain name: such calls are made by a function.
    """
    result, name_of, copies = fx.Graph(), dict[str, str](), dict[fx.Node, fx.Node]()
    taken = set(_TAKEN)
    targets = dict.fromkeys(str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr"))
    for path in sorted(targets, key=lambda target: target.count(".")):  # children of the root keep their own names
        name_of[path] = _fresh(path, taken)
    for node in graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = new = _written(result, node, args, kwargs, name_of)
        new.meta = copy.copy(node.meta)
    return result, {name: path for path, name in name_of.items()}


def _fresh(path: str, taken: set[str]) -> str:
    """A name like this path that is not taken yet."""
    name = base = re.sub(r"\W+", "_", path, flags=re.ASCII)[:_LENGTH] or "_"
    if base[0].isdigit() or keyword.iskeyword(base):
        name = base = f"_{base}"
    number = 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def _written(result: fx.Graph, node: fx.Node, args: Any, kwargs: Any, name_of: Mapping[str, str]) -> fx.Node:
    """The node as it can be written."""
    op, target, name = node.op, node.target, "self_1" if node.name == "self" else node.name
    if op == "placeholder":
        stars = re.match(r"\*{0,2}", str(target))[0]  # type: ignore[index]  # it always matches
        new = result.placeholder(name)
        new.target, new.args = stars + new.name, args
        return new
    if op in ("call_module", "get_attr"):
        target = name_of[str(target)]
    odd_keywords = not all(map(is_plain, kwargs))
    if op == "call_module" and odd_keywords:
        args, kwargs, op, target = (result.get_attr(str(target)), args, kwargs), {}, "call_function", call
    elif op == "call_method" and (odd_keywords or not is_plain(str(target))):
        args, kwargs, op, target = (str(target), args, kwargs), {}, "call_function", call_method
    elif op == "call_function" and (odd_keywords or (target is getattr and not is_plain(str(args[1])))):
        args, kwargs, target = (args, kwargs), {}, Call(functools.partial(call, target))  # type: ignore[arg-type]  # fx's
    return result.create_node(op, target, args, kwargs, name)


def constant_name(number: int, paths: Collection[str]) -> str:
    """What the constant of this number is called in a graph of a model that has tensors of these paths."""
    name = f"_constant_{number}"
    while name in paths:
        name += "_"
    return name


def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`function(*args, **kwargs)`."""
    return function(*args, **kwargs)


def call_method(name: str, args: Any, kwargs: Any) -> Any:
    """`args[0].name(*args[1:], **kwargs)`."""
    return getattr(args[0], name)(*args[1:], **kwargs)


def generated(graph: fx.Graph, find: Callable[[str], Any], name: str = "GraphModule") -> fx.GraphModule:
    """The graph as a module that holds what `find` finds for the paths of its targets."""
    graph, paths = own_names(graph)
    return Compiled({own: find(path) for own, path in paths.items()}, graph, name)


class Compiled(fx.GraphModule):
    """A graph module whose source goes with it: fx keeps what it has compiled, for tracebacks, for ever."""

    def recompile(self) -> Any:
        """Compile the graph, and forget what was compiled before."""
        self._forget()
        return super().recompile()

    def _forget(self) -> None:
        forward = vars(type(self)).get("forward")  # fx makes a class for each instance
        if forward is not None and hasattr(forward, "__code__"):
            forget_source(forward.__code__.co_filename)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # Python may be on its way out
            self._forget()


def forget_source(key: str) -> None:
    """Forget the source that fx compiled under this key."""
    if key.startswith("<eval_with_key>"):
        graph_module._loader.eval_cache.pop(key, None)
        linecache.cache.pop(key, None)


@contextlib.contextmanager
def sources_forgotten() -> Iterator[None]:
    """Run the block, then forget what graph modules that others made in it left of their source."""
    first = graph_module._loader.next_id
    try:
        yield
    finally:
        for key in list(graph_module._loader.eval_cache):
            number = re.match(r"<eval_with_key>\.(\d+)", key)
            if number is not None and int(number[1]) >= first:
                forget_source(key)


class GraphModule(Compiled):
    """A graph as a module with children of the user's names, that the code finds by the names of ours.

    `paths`: for each of our names the path, from this module, of what it stands for.
    """

    paths: dict[str, str]

    def __init__(self, graph: fx.Graph, name: str):
        super().__init__(nn.Module(), fx.Graph(), class_name=name)
        graph, paths = own_names(graph)
        self.__dict__["paths"] = paths
        self.__dict__[PLAIN] = {}
        self.__dict__["_steps"] = {name: tuple(path.split(".")) for name, path in paths.items()}
        self.graph = graph  # before there are children: it compiles all graph modules among them

    def __getattr__(self, name: str) -> Any:
        steps = self.__dict__.get("_steps", {}).get(name)
        if steps is None:
            plain = self.__dict__.get(PLAIN, {})
            return plain[name] if name in plain else super().__getattr__(name)
        value: Any = self
        for step in steps:
            value = child(value, step)
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphModule":
        result = GraphModule(fx.Graph(), type(self).__name__)
        memo[id(self)] = result
        state = {key: value for key, value in vars(self).items() if key != "_graph"}
        result.__dict__.update(copy.deepcopy(state, memo))
        result.graph = copy.deepcopy(self._graph, memo)
        return result


def child(owner: Any, name: str) -> Any:
    """What an object has under a name, its tables before its class: modules may be called as a class calls its own."""
    tables = vars(owner)
    for table in _TABLES:
        found = tables.get(table)
        if found and name in found:
            return found[name]
    return getattr(owner, name)
