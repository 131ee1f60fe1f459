"""Networks of models: agents with clocks of their own that send each other messages and learn without waiting."""

from .description.policy import stack
from .errors import NetworkError
from .network import Network
from .running.tick import TickResult
from .showing.log import EventLog

__all__ = ["EventLog", "Network", "NetworkError", "TickResult", "stack"]
