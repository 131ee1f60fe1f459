"""Cut any PyTorch model into parts that learn without waiting for each other (decoupled neural interfaces)."""

from .bench.bench import bench
from .bench.report import BenchReport
from .boundaries import (
    Boundary,
    BoundaryError,
    CrossingSpec,
    Seen,
    Visit,
    auglocal,
    blend,
    delayed,
    dfa,
    dni,
    infopro,
    local_loss,
    oracle,
    refresh,
    silent,
    warm_up,
)
from .boundaries.choices import UnconditionedWarning
from .boundaries.watch import TrainingWarning
from .decouple import decouple, places, plan
from .decoupled.attribute_guards import SettingsWarning
from .decoupled.cache import WaysWarning
from .decoupled.module import DecoupledModule
from .decoupled.on_hooks import HooksWarning
from .demo.images import DataError
from .draw import draw
from .dynamo import Backend, Interfaces, UnmatchedWarning, backend_of
from .heads import conv, linear, low_rank, mlp, tokens
from .heads.conditions import Condition, ConditionError, embedded, one_hot
from .network import EventLog, Network, NetworkError, TickResult, stack
from .passes.cuts.specs import after, balanced, before
from .passes.errors import CaptureError, CheckpointError, CutError, DniGraphError, GuardMiss, PlanError
from .passes.graph.mark import cut
from .passes.plan.plan import Plan
from .proof.check import CheckError, Report, check
from .proof.memory import saved_bytes
from .proof.probe import Probe, probe
from .recurrent import Recurrent, RecurrentError, dni_in_time, unroll
from .runners.distributed import Distributed, RankResult
from .runners.local import Local, StepResult
from .runners.roster import DistributedError

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "BenchReport",
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
    "Distributed",
    "DistributedError",
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
    "RankResult",
    "Recurrent",
    "RecurrentError",
    "Report",
    "Seen",
    "SettingsWarning",
    "StepResult",
    "TickResult",
    "TrainingWarning",
    "UnconditionedWarning",
    "UnmatchedWarning",
    "Visit",
    "WaysWarning",
    "after",
    "auglocal",
    "backend_of",
    "balanced",
    "before",
    "bench",
    "blend",
    "check",
    "conv",
    "cut",
    "decouple",
    "delayed",
    "dfa",
    "dni",
    "dni_in_time",
    "draw",
    "embedded",
    "infopro",
    "linear",
    "local_loss",
    "low_rank",
    "mlp",
    "one_hot",
    "oracle",
    "places",
    "plan",
    "probe",
    "refresh",
    "saved_bytes",
    "silent",
    "stack",
    "tokens",
    "unroll",
    "warm_up",
]
