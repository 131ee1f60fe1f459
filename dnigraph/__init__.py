"""Cut any PyTorch model into parts that learn without waiting for each other (decoupled neural interfaces)."""

from .boundaries import Boundary, BoundaryError, CrossingSpec, Visit, dni, local_loss, oracle
from .boundaries.silent import silent
from .checking import CheckError, Report, check
from .checkpoint import CheckpointError
from .choices import UnconditionedWarning
from .conditions import Condition, ConditionError, embedded, one_hot
from .data import DataError
from .decouple import decouple, plan
from .draw import draw
from .dynamo import Backend, Interfaces, UnmatchedWarning, backend_of
from .heads import conv, linear, low_rank, mlp, tokens
from .hooked import HooksWarning
from .local import Local, StepResult
from .measure import saved_bytes
from .module import DecoupledModule
from .network import EventLog, Network, NetworkError, TickResult, stack
from .passes.balance import balanced
from .passes.cuts import after, before
from .passes.errors import CaptureError, CutError, DniGraphError, GuardMiss, PlanError
from .passes.marker import cut
from .passes.plan import Plan
from .probing import Probe, probe
from .recurrent import Recurrent, RecurrentError
from .settings import SettingsWarning

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "Boundary",
    "BoundaryError",
    "CaptureError",
    "CheckError",
    "CheckpointError",
    "Condition",
    "ConditionError",
    "CrossingSpec",
    "CutError",
    "DataError",
    "DecoupledModule",
    "DniGraphError",
    "EventLog",
    "GuardMiss",
    "HooksWarning",
    "Interfaces",
    "Local",
    "Network",
    "NetworkError",
    "Plan",
    "PlanError",
    "Probe",
    "Recurrent",
    "RecurrentError",
    "Report",
    "SettingsWarning",
    "StepResult",
    "TickResult",
    "UnconditionedWarning",
    "UnmatchedWarning",
    "Visit",
    "after",
    "backend_of",
    "balanced",
    "before",
    "check",
    "conv",
    "cut",
    "decouple",
    "dni",
    "draw",
    "embedded",
    "linear",
    "local_loss",
    "low_rank",
    "mlp",
    "one_hot",
    "oracle",
    "plan",
    "probe",
    "saved_bytes",
    "silent",
    "stack",
    "tokens",
]
