"""From the words that name a model on the command line to the model and one call of it."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from torch import nn

from ..passes.errors import DniGraphError, nearest
from .libraries import LIBRARIES

FORMS = "package.module:callable, path/to/file.py:callable, timm:NAME, transformers:NAME or torchvision:NAME"
FIELDS = ("model", "example_args", "example_kwargs")
EXTRAS = ("data", "test", "loss", "optimizer")  # what a dict may have beside, for `dnigraph bench`


@dataclass(frozen=True)
class Loaded:
    """A model, and one call of it where there is one."""

    model: nn.Module
    args: tuple[Any, ...] | list[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)  # by the names in EXTRAS


def load(spec: str) -> Loaded:
    """What a SPEC stands for.

    Raises:
        BadParameter: there is no such module, file, callable or name, or what it gives is no model.
        DniGraphError: the module or the callable fails.
    """
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name):
        raise click.BadParameter(f"{spec!r} names no model; say {FORMS}", param_hint="SPEC")
    if place in LIBRARIES:
        return as_loaded(LIBRARIES[place](name), spec)
    found = _found(_module(place), name, place)
    if isinstance(found, nn.Module):
        return Loaded(found)
    return as_loaded(_called(found, spec), spec)


def _module(place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py" or path.is_file()
    if is_file and not path.is_file():
        raise click.BadParameter(f"there is no file {place} in {Path.cwd()}", param_hint="SPEC")
    home = str(path.resolve().parent if is_file else Path.cwd())
    if home not in sys.path:
        sys.path.insert(0, home)  # as `python file.py` and `python -m` have it, for what the module imports in turn
    try:
        return _from_file(path) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if is_file or not error.name or not f"{place}.".startswith(f"{error.name}."):
            raise _failed(f"importing {place}", error) from error
        words = f"there is no module {error.name!r} in {Path.cwd()}, nor is one installed"
        raise click.BadParameter(f"{words}; for a file say path/to/file.py:callable", param_hint="SPEC") from error
    except Exception as error:
        raise _failed(f"importing {place}", error) from error


def _from_file(path: Path) -> ModuleType:
    name = f"_dnigraph_spec_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up there
    found.loader.exec_module(module)
    return module


def _found(module: ModuleType, name: str, place: str) -> Any:
    try:
        found = attrgetter(name)(module)
    except AttributeError as error:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = nearest(name, known) or (f"; there are {', '.join(known[:8])}" if known else "; it has none")
        raise click.BadParameter(f"{place} has no callable {name!r}{near}", param_hint="SPEC") from error
    if not callable(found):
        words = f"{name} of {place} is no callable but {_kind(found)}; say a function that returns a model"
        raise click.BadParameter(words, param_hint="SPEC")
    return found


def _called(make: Any, spec: str) -> Any:
    try:
        return make()
    except Exception as error:
        raise _failed(f"{spec} (called without arguments)", error) from error


def _failed(what: str, error: Exception) -> DniGraphError:
    """The error with the line of the user's code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    where = f"\n  * {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""
    return DniGraphError(f"{what} fails: {type(error).__name__}: {error}{where}")


def as_loaded(result: Any, spec: str) -> Loaded:
    """What a callable returned, as a model with its example call.

    Raises:
        BadParameter: it is none of a model, (model, example_args), (model, example_args, example_kwargs), or a dict.
    """
    if isinstance(result, Mapping) and set(result) <= {*FIELDS, *EXTRAS}:
        plain = as_loaded(tuple(result.get(name) for name in FIELDS), spec)
        return replace(plain, extras={name: result[name] for name in EXTRAS if name in result})
    model, *example = result if isinstance(result, tuple) and result else (result,)
    if not isinstance(model, nn.Module) or len(example) > 2:
        words = "a model, (model, example_args), (model, example_args, example_kwargs) or a dict with these names"
        raise click.BadParameter(f"{spec} returns {_kind(result)}; return {words}", param_hint="SPEC")
    args, kwargs = (*example, None, None)[:2]
    return Loaded(model, args if isinstance(args, tuple | list | None) else (args,), kwargs)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value)) or 'nothing in it'}"
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return f"a {type(value).__name__}"
