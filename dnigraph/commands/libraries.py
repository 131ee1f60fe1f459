"""Models of libraries by name, with weights drawn at random: where to cut does not ask what was learned."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import click
import torch

from ..passes.errors import nearest


def timm(name: str) -> Any:
    """A model of timm, and two images of the size that it was made for."""
    library = _library("timm")
    _known(name, library.list_models(), "timm")
    model = library.create_model(name)
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    return model, (torch.randn(2, *size),)


def torchvision(name: str) -> Any:
    """A model of torchvision, and two images."""
    models = _library("torchvision.models")
    _known(name, models.list_models(), "torchvision")
    return models.get_model(name, weights=None, weights_backbone=None), (torch.randn(2, 3, 224, 224),)


def transformers(name: str) -> Any:
    """A model of transformers by its class or its type (gpt2, bert), as its configuration is by default, and the inputs
    that the library makes up for it.
    """
    library = _library("transformers")
    types = list(library.CONFIG_MAPPING.keys())
    classes = [key for key in dir(library) if key.endswith("Model") or "For" in key]
    _known(name, [*types, *classes], "transformers")
    if name in types:
        config = library.AutoConfig.for_model(name)
        model = library.AutoModel.from_config(_without_cache(config))
    else:
        kind = getattr(library, name)
        model = kind(_without_cache(kind.config_class()))
    return model, (), dict(model.dummy_inputs)


def _without_cache(config: Any) -> Any:
    config.use_cache = False  # the keys and values of every layer would be results, and of no use in training
    return config


LIBRARIES: dict[str, Callable[[str], Any]] = {
    "timm": timm,
    "torchvision": torchvision,
    "transformers": transformers,
}


def _library(module: str) -> ModuleType:
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        words = f"{name} cannot be imported here ({error}); install it: pip install {name}"
        raise click.BadParameter(words, param_hint="SPEC") from error


def _known(name: str, names: list[str], library: str) -> None:
    if name not in names:
        raise click.BadParameter(f"{library} has no model {name!r}{nearest(name, names)}", param_hint="SPEC")
