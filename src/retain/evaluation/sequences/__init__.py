"""Task sequences: what each way of learning keeps of the tasks before."""

from retain.evaluation.sequences.config import MethodsConfig, SequenceConfig, TrainingConfig
from retain.evaluation.sequences.experiment import Learned, Step, learn_sequence, load_config, make_sequence, run_sequence
from retain.evaluation.sequences.language import AdapterSequence, StackedAdapters
from retain.evaluation.sequences.methods import METHODS, build_way, parts_of
from retain.evaluation.sequences.plan import Plan, plan_sequence
from retain.evaluation.sequences.sequence import NetworkSequence, TaskSequence
from retain.evaluation.sequences.ways import Joint, PackNet, Progressive, Sequential, Way

__all__ = [
    "METHODS",
    "AdapterSequence",
    "Joint",
    "Learned",
    "MethodsConfig",
    "NetworkSequence",
    "PackNet",
    "Plan",
    "Progressive",
    "SequenceConfig",
    "Sequential",
    "StackedAdapters",
    "Step",
    "TaskSequence",
    "TrainingConfig",
    "Way",
    "build_way",
    "learn_sequence",
    "load_config",
    "make_sequence",
    "parts_of",
    "plan_sequence",
    "run_sequence",
]
