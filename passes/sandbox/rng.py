"""Random number generators: their states, and numbers at the ends of their range and inside."""

import enum
import pickle
import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states of all random number generators that a model may draw from."""
    numpy = np.random.get_state()  # noqa: NPY002  # the one that models draw from
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002  # the one that models draw from
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


def fingerprint(state: Any = None) -> bytes:
    """A generator's state as something to compare; None: of the generators of Python and numpy."""
    if state is None:
        state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the one that models draw from
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else pickle.dumps(state)


def state_of(generator: Any) -> Any:
    """The state of a generator of Python, numpy or torch."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()  # of torch, or numpy's older kind


def set_state(generator: Any, state: Any) -> None:
    """Put a generator back into a state."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def seed_all(seed: int) -> None:
    """Seed all random number generators that a model may draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the one that models draw from
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would note it for devices that are not there yet
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.manual_seed_all(seed)


class ExtremeDraws(enum.Enum):
    """Python and numpy draw numbers at one end of their range, so that a rare branch (`random() < 1e-3`) is taken.

    `choice` and the like draw bits until a number fits, and the highest fit only now and then: the inner ones do at
    once and stand for an entry that is not the first.
    """

    LOWEST = 0
    INNER = 0xFC02C9A7  # handed out as 0x7FFF0001: Python cuts the number from the left end, numpy from the right
    HIGHEST = 0x12DD9BB3  # the word of a Mersenne Twister that is handed out as 0xFFFFFFFF

    def set(self) -> None:
        """Let the next draws (400 words of 32 bits) be extreme, and those after them ordinary."""
        words = [self.value] * 400 + _ORDINARY[400:]  # not all: what draws until a number fits would never end
        random.setstate((3, (*words, 0), None))
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), 0, 0, 0.0))  # noqa: NPY002  # the one of models


_ORDINARY = list(random.Random(5).getstate()[1][:624])  # 5: any seed; 624 words are the state of a Mersenne Twister
