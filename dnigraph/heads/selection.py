"""From a user's choice to a head: a name, a factory with options, or a callable of the user's own."""

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from ..passes.errors import DniGraphError, is_whole, nearest
from .convolution import Convolution
from .dense import Dense
from .head import Foreign, Head, HeadError
from .spec import CrossingSpec

HeadFactory: TypeAlias = Callable[[CrossingSpec], nn.Module]
HeadChoice: TypeAlias = "str | HeadFactory"

WIDE = 1024  # from this width on a hidden layer of half the width is not worth its cost


def make_head(choice: HeadChoice, spec: CrossingSpec) -> Head:
    """The head that `choice` makes for this crossing, on the crossing's device.

    `choice` is a name ("auto", "linear", "low-rank", "mlp", "conv", "tokens"), one of those as a function with options
    (`mlp(hidden=64)`), or any callable from a `CrossingSpec` to an `nn.Module`. Such a module is called with
    (value, encoded label) where its forward takes two arguments, else with (value), and gives the value's shape.

    Raises:
        HeadError: no such head, it does not fit the crossing's shape, a ready module was given, or the callable fails.
    """
    factory = _factory(choice, spec)
    try:
        module = factory(spec)
    except DniGraphError:
        raise
    except Exception as cause:
        raise HeadError(
            f"the head factory for boundary '{spec.name}' fails: {type(cause).__name__}: {cause}; it is called with "
            f"the crossing, whose shape is {list(spec.shape)}: head=lambda spec: MyHead(spec.shape[1])"
        ) from cause
    if not isinstance(module, nn.Module):
        raise HeadError(
            f"the head factory for boundary '{spec.name}' must make an nn.Module, but made {type(module).__name__}"
        )
    module.to(spec.device)
    head: Head = module if isinstance(module, Head) else Foreign(spec, module)
    head.to(spec.device)
    return head


def auto() -> HeadFactory:
    """By the crossing's shape: `mlp` for features, `conv` for maps, `tokens` for tokens, `low_rank` if it is wide."""

    def make(spec: CrossingSpec) -> nn.Module:
        if spec.kind == "maps":
            return conv()(spec)
        if spec.width >= WIDE:
            return low_rank()(spec)
        return mlp()(spec) if spec.kind == "features" else tokens()(spec)

    return make


def linear() -> HeadFactory:
    """One linear map of features or tokens, with a bias for each label. Cheap, and slow to become good."""

    def make(spec: CrossingSpec) -> Dense:
        _fits(spec, "linear", "features", "tokens")
        return Dense(spec, spec.width, (), "linear")

    return make


def low_rank(rank: int = 64) -> HeadFactory:
    """A hidden layer of only `rank` units: cost grows with the crossing's width, not with its square.

    At width 256, every layer cut, rank 64 was close behind a hidden layer of 128 (train loss .267 against .248).
    """
    _sizes("low_rank", rank=rank)

    def make(spec: CrossingSpec) -> Dense:
        _fits(spec, "low-rank", "features", "tokens")
        return Dense(spec, spec.width, (rank,), f"low-rank {rank}")

    return make


def mlp(hidden: int | None = None, layers: int = 1) -> HeadFactory:
    """`layers` hidden layers of `hidden` units (None: half the crossing's width) for features or tokens.

    The full width costs a fifth of a backprop step more per cut on a 3-layer net, for a slightly better estimate.
    """
    _sizes("mlp", hidden=hidden, layers=layers)

    def make(spec: CrossingSpec) -> Dense:
        _fits(spec, "mlp", "features", "tokens")
        units = (hidden or _half(spec.width),) * layers
        return Dense(spec, spec.width, units, f"mlp {' x '.join(map(str, units))}")

    return make


def conv(channels: int | None = None, layers: int = 2, kernel: int = 3, coarse: int | None = None) -> HeadFactory:
    """`layers` hidden convolutions of `channels` channels (None: as many as the crossing has, at most 64) for maps.

    They work on a grid that is `coarse` times coarser along each axis (None: 2 where the map is at least 8 wide, 4 from
    16 on, else 1): a sixteenth of the cost for 4, and they see four times as far.
    """
    _sizes("conv", channels=channels, layers=layers, kernel=kernel, coarse=coarse)
    if kernel % 2 == 0:
        raise HeadError(f"conv: kernel must be odd, so that the shape stays the same, not {kernel}")

    def make(spec: CrossingSpec) -> Convolution:
        _fits(spec, "conv", "maps")
        units = (channels or min(spec.width, 64),) * layers
        factor = coarse or _coarse(spec)
        name = f"conv {kernel}x{kernel} {' x '.join(map(str, units))}" + (f" / {factor}" if factor > 1 else "")
        return Convolution(spec, units, kernel, factor, name)

    return make


def tokens(hidden: int | None = None) -> HeadFactory:
    """The same mlp at every token; there may be one label for each token or one for each sample."""
    _sizes("tokens", hidden=hidden)

    def make(spec: CrossingSpec) -> Dense:
        _fits(spec, "tokens", "tokens", "maps")
        units = hidden or _half(spec.shape[-1])
        return Dense(spec, spec.shape[-1], (units,), f"tokens {units}")

    return make


NAMED: dict[str, Callable[[], HeadFactory]] = {
    "auto": auto,
    "linear": linear,
    "low-rank": low_rank,
    "mlp": mlp,
    "conv": conv,
    "tokens": tokens,
}


def _factory(choice: HeadChoice, spec: CrossingSpec) -> HeadFactory:
    if spec.dtype.is_complex or not spec.dtype.is_floating_point:
        raise HeadError(
            f"boundary '{spec.name}': heads predict gradients of real numbers, not of {spec.dtype}; "
            "boundary='oracle' passes the true gradient on"
        )
    if isinstance(choice, nn.Module):
        raise HeadError(
            f"head={type(choice).__name__}(...) is a ready module, but every boundary makes a head of its own: "
            "give a factory, head=lambda spec: MyHead(spec.shape[1])"
        )
    if isinstance(choice, str):
        if choice not in NAMED:
            raise HeadError(
                f"there is no head '{choice}'{nearest(choice, NAMED)}; choose one of {', '.join(NAMED)}, "
                "or give a factory, head=lambda spec: MyHead(spec.shape[1])"
            )
        return NAMED[choice]()
    if not callable(choice):
        raise HeadError(f"a head is a name or a callable from a crossing to an nn.Module, not {choice!r}")
    return choice


def _fits(spec: CrossingSpec, name: str, *kinds: str) -> None:
    if spec.kind not in kinds:
        instead = {"features": "mlp, low-rank or linear", "maps": "conv", "tokens": "tokens, mlp, low-rank or linear"}
        raise HeadError(
            f"head '{name}' does not fit boundary '{spec.name}': it is made for {' or '.join(kinds)}, "
            f"but the shape {list(spec.shape)} is one of {spec.kind}; use {instead[spec.kind]}, or 'auto'"
        )


def _sizes(where: str, **sizes: int | None) -> None:
    misfits = []
    for name, size in sizes.items():
        if size is not None and not is_whole(size, 1):
            misfits.append(f"{name}={size!r}")
    if misfits:
        raise HeadError(f"{where}: sizes are positive whole numbers, not {', '.join(misfits)}")


def _coarse(spec: CrossingSpec) -> int:
    """How much coarser than the map a head's grid may be, so that a few cells are left along each axis."""
    least = min(spec.shape[2:])
    return 4 if least >= 16 else 2 if least >= 8 else 1


def _half(width: int) -> int:
    return max(width // 2, min(width, 64), 8)
