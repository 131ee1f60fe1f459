"""Example inputs as one says them on the command line: "4,3,32,32", "2,16:int64", "mask=2,16:bool"."""

import inspect
from dataclasses import replace

import click
import torch
from torch import Tensor

from ..passes.errors import nearest
from .model_specs import Loaded

DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def with_example(loaded: Loaded, inputs: tuple[str, ...]) -> Loaded:
    """The model with the inputs that were asked for in place of those that it came with.

    Raises:
        BadParameter: an input is none.
        UsageError: there is no example at all.
    """
    if inputs:
        pairs = [_named(text) for text in inputs]
        args = tuple(value for name, value in pairs if name is None)
        return replace(loaded, args=args, kwargs={name: value for name, value in pairs if name is not None})
    if loaded.args is None and loaded.kwargs is None:
        words = f"an example call of forward{inspect.signature(loaded.model.forward)} is needed"
        ways = '--input "4,3,32,32" for each tensor, or let the callable return (model, example_args)'
        raise click.UsageError(f"{words}: give {ways}")
    return loaded


def _named(text: str) -> tuple[str | None, Tensor]:
    name, equals, value = text.rpartition("=")
    return (name.strip() if equals else None), tensor(value)


def tensor(text: str) -> Tensor:
    """A tensor of a shape: random numbers for floats, zeros (which any vocabulary has) for integers, ones for flags.

    Raises:
        BadParameter: it is no shape, or there is no such dtype.
    """
    shape, _, kind = text.partition(":")
    try:
        sizes = [int(size) for size in shape.split(",") if size.strip()]
        if min(sizes, default=0) < 0:
            raise ValueError
    except ValueError:
        words = f'{text!r} is no shape; say "4,3,32,32", with a dtype "4,16:int64", by name "mask=4,16:bool"'
        raise click.BadParameter(words, param_hint="--input") from None
    dtype = DTYPES.get(kind.strip() or "float32")
    if dtype is None:
        words = f"{text!r}: there is no dtype {kind!r}{nearest(kind, DTYPES)}"
        raise click.BadParameter(words, param_hint="--input")
    return _filled(sizes, dtype)


def _filled(sizes: list[int], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(sizes, generator=generator).to(dtype)
    return torch.ones(sizes, dtype=dtype) if dtype is torch.bool else torch.zeros(sizes, dtype=dtype)
