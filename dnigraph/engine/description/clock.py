"""When an agent fires: a global clock counts ticks, and each agent takes every so many of them."""

from dataclasses import dataclass

from ...passes.errors import is_whole


@dataclass(frozen=True)
class Clock:
    """Fires at the ticks phase, phase + every, phase + 2 * every, ..."""

    every: int = 1
    phase: int = 0

    def fires(self, tick: int) -> bool:
        """Whether the clock fires in this tick."""
        return tick >= self.phase and (tick - self.phase) % self.every == 0

    def after(self, tick: int) -> int:
        """The first tick after `tick` in which it fires."""
        if tick < self.phase:
            return self.phase
        return tick + self.every - (tick - self.phase) % self.every

    def misfits(self) -> list[str]:
        """What is wrong with the clock, a line each."""
        wrong = [] if is_whole(self.every, 1) else [f"every={self.every!r} (a whole number from 1 on)"]
        return wrong if is_whole(self.phase, 0) else [*wrong, f"phase={self.phase!r} (a whole number from 0 on)"]

    def __str__(self) -> str:
        return f"every {self.every}" + (f" from {self.phase}" if self.phase else "")
