"""Networks of models: agents with clocks of their own that send each other messages and learn without waiting."""

from ..engine.description.network_error import NetworkError
from ..engine.description.policy import stack
from ..engine.event_log import EventLog
from ..engine.tick import TickResult
from .network import Network

__all__ = ["EventLog", "Network", "NetworkError", "TickResult", "stack"]
