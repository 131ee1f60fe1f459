"""Frames between processes: a header of fixed size, which is looked at, and then what it announces.

    header   [32 numbers]   kind, channel, step, type, sizes, ...
    payload  [bytes]        only if the header announces some; the reader then makes room of that size

gloo ends a process that receives another size than it made room for. So sizes may change from step to step, and what
comes never decides over the life of the process that reads it.
"""

import struct
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from .roster import DistributedError

FIELDS = 32  # of a header, 64 bits each
MAGIC = 0x444E4947_00000001  # "DNIG", and the version of this form
DIMS = 8  # of a tensor, at most
NOTHING, VALUE, BYTES, BYE = range(4)  # kinds: an empty packet, one with a value, a file's bytes, the end
NONE, WHOLE, REAL, TRUTH = -1, -2, -3, -4  # in place of a type: None, and Python's own numbers
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


@dataclass(frozen=True)
class Stamp:
    """What a rank was doing when it sent a frame: both ends must do the same."""

    step: int = 0
    phase: int = 0  # 0: a step, 1: `settle`
    way: int = 0  # through the model's code
    inputs: int = 0  # a digest of the step's inputs
    label: int = 0  # of what the heads see; 0: this rank is given none


@dataclass(frozen=True)
class Frame:
    """One value on its way, or nothing."""

    kind: int
    channel: int
    stamp: Stamp = Stamp()
    left: int = 0  # frames of the same packet that follow
    sent: int = 0  # the tick in which the message was sent
    wants: int = 0  # 1: a message whose sender waits for an answer
    value: Any = None


def packed(frame: Frame) -> tuple[Tensor, Tensor | None]:
    """The frame's header and payload, contiguous and in memory of the CPU.

    Raises:
        DistributedError: the value is none that crosses from process to process.
    """
    header = [MAGIC, frame.kind, frame.channel, frame.left, frame.sent, frame.wants]
    header += [frame.stamp.step, frame.stamp.phase, frame.stamp.way, frame.stamp.inputs, frame.stamp.label]
    code, number, payload = _coded(frame.value)
    header += [code, number]
    if payload is not None:
        order = _order(frame.value)
        header += [payload.dim(), *payload.shape, *[0] * (DIMS - payload.dim()), *order]
    header += [0] * (FIELDS - len(header))
    return torch.tensor(header, dtype=torch.int64), payload


def opened(header: Tensor) -> tuple[Frame, Tensor | None, list[int]]:
    """The frame that a header announces, room for its payload, and the order of its dimensions.

    Raises:
        DistributedError: it is no header of this form.
    """
    numbers = header.tolist()
    magic, kind, channel, left, sent, wants, step, phase, way, inputs, label, code, number, dims = numbers[:14]
    sizes, order = numbers[14 : 14 + max(dims, 0)], numbers[14 + DIMS : 14 + DIMS + max(dims, 0)]
    if magic != MAGIC or not 0 <= kind <= BYE or not TRUTH <= code < len(DTYPES) or not 0 <= dims <= DIMS or left < 0:
        raise DistributedError(f"what came is no header of a frame: it begins with {numbers[:4]}")
    if any(size < 0 for size in sizes) or sorted(order) != [*range(dims)]:
        raise DistributedError(f"a header announces a tensor of the sizes {sizes}, in the order {order}")
    frame = Frame(kind, channel, Stamp(step, phase, way, inputs, label), left, sent, wants)
    if code >= 0:
        return frame, torch.empty(sizes, dtype=DTYPES[code]), order
    return replace(frame, value=_number(code, number)), None, order


def placed(frame: Frame, payload: Tensor, order: list[int]) -> Frame:
    """The frame with its tensor, whose dimensions lie in memory as they did where it was sent."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return replace(frame, value=payload.permute(back))


def as_bytes(payload: Tensor) -> Tensor:
    """The payload's memory, to be sent or received. Shapes: [...] -> [bytes]."""
    return payload.reshape(-1).view(torch.uint8)


def size_of(payload: Tensor) -> int:
    """Bytes."""
    return prod(payload.shape) * payload.element_size()


def _coded(value: Any) -> tuple[int, int, Tensor | None]:
    """The code of a value's type, a number for Python's own, and the tensor to send."""
    if value is None:
        return NONE, 0, None
    if isinstance(value, bool):
        return TRUTH, int(value), None
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return WHOLE, value, None
    if isinstance(value, float):
        return REAL, struct.unpack("q", struct.pack("d", value))[0], None
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in DTYPES:
        what = f"{value.dtype} {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise DistributedError(
            f"a value of this kind does not cross from process to process: {what}; tensors of the common types do, "
            "numbers, and None: cut elsewhere, or put both parts on one rank, ranks={...}"
        )
    if value.dim() > DIMS:
        raise DistributedError(f"a tensor with {value.dim()} dimensions does not cross: {DIMS} do")
    dense = value.detach().resolve_conj().resolve_neg().permute(_order(value)).cpu().contiguous()
    return DTYPES.index(value.dtype), 0, dense


def _number(code: int, number: int) -> Any:
    if code == REAL:
        return struct.unpack("d", struct.pack("q", number))[0]
    return None if code == NONE else bool(number) if code == TRUTH else number


def _order(value: Tensor) -> list[int]:
    """The dimensions by their strides, largest first: kernels look at them, and the reader's shall compute the same."""
    strides = value.stride()
    return sorted(range(value.dim()), key=lambda d: (-strides[d], d))
