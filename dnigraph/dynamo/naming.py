"""The names of a captured graph's modules and tensors, for each instance of the module that it runs for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..passes.capture.dynamo_graph import Paths, held, spelled_path, stated_modules
from ..passes.sandbox.snapshot import tensor_names


@dataclass(frozen=True)
class Instance:
    """The names that hold for one instance."""

    tensors: dict[int, str]  # by position among the arguments
    paths: Paths


class Naming:
    """Names for the modules and tensors of a graph.

    Dynamo captures the forward of a class once and runs the graph for all instances whose guards hold: the blocks of a
    net, two models of one class. Only the parameters among the arguments tell which instance it is.

        captured for   "blocks.0.fc.weight"    in module "blocks.0.fc"
        now with       "blocks.3.fc.weight"    so it is  "blocks.3.fc"
    """

    def __init__(self, graph: fx.Graph, examples: Sequence[Any]):
        self.held = held(graph, examples)
        self._stated = stated_modules(graph)
        self._first: tuple[dict[int, str], dict[str, str]] | None = None  # of the instance that was captured

    def instance(self, model: nn.Module, args: Sequence[Any]) -> Instance:
        """The names of the instance of `model` whose tensors are `args`. The first call is for the captured one."""
        owned = tensor_names(model)
        names = {i: owned[id(arg)] for i, arg in enumerate(args) if id(arg) in owned}
        if self._first is None:
            modules = {str(id(module)): path for path, module in model.named_modules()}
            paths = {key: modules.get(key, spelled_path(source)) for key, source in self._stated.items()}
            self._first = {i: f"foreign_{i}" for i in self.held} | names, paths
        tensors, paths = self._first
        names = {i: names.get(i, name) for i, name in tensors.items()} | names  # foreign tensors keep their names
        moved = sorted({_moved(tensors[i], names[i]) for i in tensors}, key=lambda change: -len(change[0]))

        def path(module: str, expression: str) -> str:
            return _elsewhere(paths[module], moved)

        return Instance(names, path)


def _moved(name: str, now: str) -> tuple[str, str]:
    """Both names without the end that they share: the path of the captured instance and that of this one."""
    old, new = name.split("."), now.split(".")
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return ".".join(old), ".".join(new)


def _elsewhere(path: str, moved: Sequence[tuple[str, str]]) -> str:
    for old, new in moved:
        if old and (path == old or path.startswith(f"{old}.")):
            return new + path.removeprefix(old)
    return path
