"""The loss of distillation (Hinton et al., 1503.02531, section 2):

    alpha * T^2 * KL(teacher/T || student/T) + (1 - alpha) * cross-entropy

a mean over the supervised tokens of a piece. There is no padding in it: logits come of supervised positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.data.examples import Example
from retain.pretraining.distillation.networks import Network
from retain.retention.distillation import kl_divergence


def distillation_loss(
    student: Tensor, teacher: Tensor | None, labels: Tensor, alpha: float = 0.5, temperature: float = 2.0
) -> dict[str, Tensor]:
    """The loss from logits [N, V] at N supervised positions and their labels [N].

    Returns {"loss", "nll"} and, with a teacher, "kl" without its factor T^2: means over the positions. T^2 keeps the size of the teacher's
    gradient independent of T. The gradient reaches the student alone; without a teacher the loss is the cross-entropy.
    """
    nll = F.cross_entropy(student.float(), labels)
    if teacher is None:
        return {"loss": nll, "nll": nll.detach()}
    kl = kl_divergence(teacher, student, temperature)  # with its T^2
    return {"loss": alpha * kl + (1.0 - alpha) * nll, "nll": nll.detach(), "kl": kl.detach() / temperature**2}


class Distiller(nn.Module):
    """A student that learns from examples and, where there is one, from a teacher. The teacher is frozen and in evaluation mode; it is no
    part of the module, so neither its weights nor its mode can be changed through it."""

    def __init__(self, student: Network, teacher: Network | None, alpha: float = 0.5, temperature: float = 2.0) -> None:
        super().__init__()
        self.student = student
        self.teachers = (teacher.requires_grad_(False).eval(),) if teacher is not None else ()  # a tuple, so that it is no submodule
        self.alpha, self.temperature = alpha, temperature

    def forward(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The loss of a piece and its parts."""
        logits, labels = self.student(examples)
        if not self.teachers or self.alpha == 0.0:
            return distillation_loss(logits, None, labels)
        with torch.no_grad():
            taught, _ = self.teachers[0](examples)
        shared = min(logits.shape[-1], taught.shape[-1])  # some models pad their vocabulary
        return distillation_loss(logits[:, :shared], taught[:, :shared], labels, self.alpha, self.temperature)
