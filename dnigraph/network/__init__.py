"""Networks of models: agents with clocks of their own that send each other messages and learn without waiting."""

from .description.network_error import NetworkError
from .description.policy import stack
from .network import Network
from .running.event_log import EventLog
from .running.tick import TickResult

__all__ = ["EventLog", "Network", "NetworkError", "TickResult", "stack"]
