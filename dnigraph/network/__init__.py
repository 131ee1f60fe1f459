"""Networks of models: agents with clocks of their own that send each other messages and learn without waiting."""

from .errors import NetworkError
from .log import EventLog
from .network import Network
from .policy import stack
from .tick import TickResult

__all__ = ["EventLog", "Network", "NetworkError", "TickResult", "stack"]
