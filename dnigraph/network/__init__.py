"""Networks of models: agents with clocks of their own that send each other messages and learn without waiting."""

from .description.policy import stack
from .network import Network
from .network_error import NetworkError
from .running.tick import TickResult
from .showing.event_log import EventLog

__all__ = ["EventLog", "Network", "NetworkError", "TickResult", "stack"]
