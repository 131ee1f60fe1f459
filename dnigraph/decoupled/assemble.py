"""From graphs to modules: parts are made here, on the user's own layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from ..passes.graph.nodes import held_modules
from ..passes.graph.own_names import PLAIN, GraphModule, child
from ..passes.sandbox.object_graph import ObjectGraph


class View(nn.Module):
    """Has some tensors of another module, its owner, under the same names, so that a part owns only what it uses.

    Parameters and submodules are the owner's own objects. Buffers are replaced when a module moves to another device:
    `refresh` fetches them again.
    """

    _owner: nn.Module
    _shown: list[str]

    def __init__(self, owner: nn.Module):
        super().__init__()
        self.__dict__["_owner"] = owner  # not by nn.Module's __setattr__, which would register it as a child
        self.__dict__["_shown"] = []
        self.__dict__[PLAIN] = {}

    def __getattr__(self, name: str) -> Any:
        plain = self.__dict__.get(PLAIN, {})
        return plain[name] if name in plain else super().__getattr__(name)

    def show(self, name: str) -> None:
        """Have one more tensor of the owner."""
        self._shown.append(name)
        self._fetch(name)

    def refresh(self) -> None:
        """Fetch all tensors from the owner again."""
        for name in self._shown:
            self._fetch(name)

    def follow(self) -> bool:
        """Have the owner's present tensors. False: one is of another kind now, so that graphs may not hold."""
        for name in self._shown:
            for table in ("_parameters", "_buffers"):
                if (before := getattr(self, table).get(name)) is not None:
                    now = getattr(self._owner, table).get(name)
                    if now is not before and not _alike(now, before):
                        return False
                    getattr(self, table)[name] = now
                    break
            else:
                if self.__dict__[PLAIN].get(name) is not getattr(self._owner, name, None):
                    return False
        return True

    def _fetch(self, name: str) -> None:
        owner = self._owner
        for table in ("_parameters", "_buffers"):
            if name in getattr(owner, table):
                getattr(self, table)[name] = getattr(owner, table)[name]
                return
        self.__dict__[PLAIN][name] = getattr(owner, name)


def _alike(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    if one is None or one.shape != other.shape or one.requires_grad != other.requires_grad:
        return False
    return one.dtype == other.dtype and one.device == other.device


class Constants(nn.Module):
    """Tensors that the model made while it was captured. They move with it and are in no state dict."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


class Assembly:
    """Makes modules from graphs over one model and one set of constants."""

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor]):
        self.model, self.constants = model, Constants(constants)
        self._views: list[View] = []
        self._places = list(ObjectGraph.of(model).places(constants.values()))  # the user may replace them

    def module(self, graph: fx.Graph, name: str) -> GraphModule:
        """The graph as a module. Its submodules are the model's own; its tensors are the model's, shown by views."""
        module = GraphModule(graph, name)
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self._attach(module, str(node.target), node.op == "call_module")
            for held in held_modules(node):  # its weights learn in this part, though no node of the graph reads them
                module._modules[f"_held_{len(module._modules)}"] = held
        module.training = self.model.training
        return module

    def refresh(self) -> None:
        """Show the model's present tensors, of whatever kind."""
        for view in self._views:
            view.refresh()

    def follow(self) -> bool:
        """Show the model's present tensors. False: one is of another kind now, so that the graphs may not hold."""
        for view in self._views:
            if not view.follow():
                return False
        for table, key, value in self._places:
            try:
                if table[key] is not value:
                    return False
            except (KeyError, IndexError):
                return False
        return True

    def _attach(self, module: nn.Module, path: str, whole: bool) -> None:
        """Give a module what a path of the model leads to: a whole submodule, or a tensor."""
        *parents, last = path.split(".")
        at: nn.Module = module
        owner: Any = self.constants if path in self.constants._buffers else self.model
        for name in parents:
            owner = child(owner, name)
            if name not in at._modules:
                at._modules[name] = self._view(owner)
            at = at._modules[name]  # type: ignore[assignment]  # never None here
            if at is owner:
                return  # the user's own module is attached here already, with the rest of the path in it
        if whole:
            at._modules[last] = child(owner, last)
        elif isinstance(at, View):
            at.show(last)
        else:  # a tensor of the model itself, or a constant: by a view whose tables are those of the part's root
            view = self._view(owner)
            for table in ("_parameters", "_buffers", PLAIN):
                view.__dict__[table] = vars(at)[table]
            view.show(last)

    def _view(self, owner: nn.Module) -> View:
        self._views.append(View(owner))
        return self._views[-1]
