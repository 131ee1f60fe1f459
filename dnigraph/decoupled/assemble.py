"""Graphs become modules: the one place where parts are made, on the user's own layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from ..passes.graph.captured_graph import SHELTER, sheltered
from ..passes.sandbox.object_graph import ObjectGraph


class View(nn.Module):
    """Shows some tensors of another module under the same names, so that a part owns just what it uses.

    Parameters and submodules are the same objects. Buffers are replaced when a module moves to another device:
    `refresh` fetches them again.
    """

    _owner: nn.Module
    _shown: list[str]

    def __init__(self, owner: nn.Module):
        super().__init__()
        self.__dict__["_owner"] = owner  # past nn.Module, which would adopt it
        self.__dict__["_shown"] = []

    def show(self, name: str) -> None:
        """Show one tensor of the owner."""
        self._shown.append(name)
        self._fetch(name)

    def refresh(self) -> None:
        """Fetch all tensors from the owner again."""
        for name in self._shown:
            self._fetch(name)

    def follow(self) -> bool:
        """Show what the owner holds now. False where that is of another kind, so that a graph may not hold."""
        for name in self._shown:
            for table in ("_parameters", "_buffers"):
                if (held := getattr(self, table).get(name)) is not None:
                    now = getattr(self._owner, table).get(name)
                    if now is not held and not _alike(now, held):
                        return False
                    getattr(self, table)[name] = now
                    break
            else:
                if self.__dict__.get(name) is not getattr(self._owner, name, None):
                    return False
        return True

    def _fetch(self, name: str) -> None:
        owner = self._owner
        for table in ("_parameters", "_buffers"):
            if name in getattr(owner, table):
                getattr(self, table)[name] = getattr(owner, table)[name]
                return
        self.__dict__[name] = getattr(owner, name)  # a tensor kept as a plain attribute


def _alike(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    if one is None or one.shape != other.shape or one.requires_grad != other.requires_grad:
        return False
    return one.dtype == other.dtype and one.device == other.device


class Constants(nn.Module):
    """Tensors that were made while the model was captured. They move with the model and are in no state dict."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


class Assembly:
    """Makes modules from graphs over one model and one set of constants."""

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor]):
        self.model, self.constants = model, Constants(constants)
        self._views: list[View] = []
        self._places = list(ObjectGraph.of(model).places(constants.values()))  # plain tensors may be replaced by others

    def module(self, graph: fx.Graph, name: str) -> fx.GraphModule:
        """The graph as a module whose submodules are the model's own and whose tensors are views of the model's."""
        graph = sheltered(graph)
        made = fx.GraphModule(nn.Module(), fx.Graph(), class_name=name)
        made.graph = graph  # first: it would have the code of a user's own graph modules written again
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self._attach(made, str(node.target), node.op == "call_module")
        made.training = self.model.training
        return made

    def refresh(self) -> None:
        """Show the tensors that the model holds now."""
        for view in self._views:
            view.refresh()

    def follow(self) -> bool:
        """Show the tensors that the model holds now; False where one of them is of another kind than before."""
        return all(view.follow() for view in self._views) and all(_still_holds(*place) for place in self._places)

    def _attach(self, made: nn.Module, path: str, whole: bool) -> None:
        *parents, last = path.split(".")
        at: nn.Module = made
        owner: Any = self.constants if path in self.constants._buffers else self.model
        for name in parents:
            owner = owner if name == SHELTER else getattr(owner, name)
            if name not in at._modules:
                at._modules[name] = self._view(owner)
            at = at._modules[name]  # type: ignore[assignment]  # never None here
            if at is owner:
                return  # the user's own module stands here already: the rest of the path is in it
        if whole:
            at._modules[last] = getattr(owner, last)
        elif isinstance(at, View):
            at.show(last)
        else:
            self._show_at_root(at, owner, last)

    def _view(self, owner: nn.Module) -> View:
        self._views.append(View(owner))
        return self._views[-1]

    def _show_at_root(self, made: nn.Module, owner: nn.Module, name: str) -> None:
        """A tensor of the model itself, or a constant: a view whose tables are the part's own."""
        view = self._view(owner)
        view.__dict__["_parameters"], view.__dict__["_buffers"] = made._parameters, made._buffers
        view.show(name)
        if name in view.__dict__:
            made.__dict__[name] = view.__dict__[name]


def _still_holds(table: Any, key: Any, value: Any) -> bool:
    try:
        return table[key] is value
    except (KeyError, IndexError):
        return False
