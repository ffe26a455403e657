"""`retain experiment`: sequences of tasks, forgetting of one task by the next, curvature."""

from retain.cli.experiment.pair import forgetting
from retain.cli.experiment.spectrum import curvature
from retain.cli.experiment.tasks import sequence

__all__ = ["curvature", "forgetting", "sequence"]
