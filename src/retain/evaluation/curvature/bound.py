"""How much of a task is forgotten, from the curvature of its loss: a bound, a prediction, and what really happened.

L is the loss of task 1, w1 the parameters it was learned with (its checkpoint, not the ones that later training began from), w2 those after
later tasks, d = w2 - w1, g and H gradient and Hessian of L at w1. To second order the forgetting F = L(w2) - L(w1) is

    g'd + 1/2 d'H d  <=  g'd + 1/2 lambda_max ||d||^2

(Mirzadeh et al., 2006.06958, section 3, who assume that g is zero at w1 and leave its term out; at the end of a training that stopped
early it is not, so it is reported and counted here). Both sides are in the unit of the loss. Where L is quadratic between w1 and w2 the
prediction is exact and the bound holds; elsewhere higher orders come in, and :func:`loss_along_path` shows from where on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from retain.evaluation.curvature.lanczos import Spectrum, lanczos
from retain.evaluation.curvature.operator import HessianOperator, Loss, Params, loss_at


@dataclass(frozen=True)
class ForgettingBound:
    """One displacement; losses in the unit of the loss, lengths in that of the parameters.

    ``gradient_term`` g'd; ``gradient_norm`` ||g||; ``distance`` ||d||; ``curvature`` d'Hd / ||d||^2 along the displacement, and
    ``lambda_max`` in the worst direction, an eigenvalue within ``lambda_residual`` of it (the bound takes their sum); ``converged``: of
    lambda_max. ``bound`` = g'd + 1/2 (lambda_max + lambda_residual) ||d||^2; ``prediction`` = g'd + 1/2 d'Hd; ``measured`` =
    ``loss_after`` - ``loss_before``.
    """

    gradient_term: float
    gradient_norm: float
    distance: float
    curvature: float
    lambda_max: float
    lambda_residual: float
    converged: bool
    bound: float
    prediction: float
    measured: float
    loss_before: float
    loss_after: float

    @property
    def without_gradient(self) -> float:
        """The bound as published, 1/2 lambda_max ||d||^2."""
        return self.bound - self.gradient_term

    @property
    def holds(self) -> bool:
        """Whether no more was forgotten than the bound says."""
        return self.measured <= self.bound

    @property
    def alignment(self) -> float:
        """d'Hd / (lambda_max ||d||^2): 1 along the sharpest direction. Undefined where lambda_max is not above zero."""
        return self.curvature / self.lambda_max if self.lambda_max > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON values; undefined numbers are NaN."""
        return {**asdict(self), "without_gradient": self.without_gradient, "holds": self.holds, "alignment": self.alignment}


def forgetting_bound(
    operator: HessianOperator, after: Params, *, spectrum: Spectrum | None = None, max_products: int = 200, seed: int = 0
) -> ForgettingBound:
    """The bound for going from the operator's parameters (w1) to ``after`` (w2).

    ``spectrum``: one of this operator whose largest eigenvalues were asked for; by default lambda_max is computed here. Raises ValueError
    when the two are the same, ArithmeticError when the loss at w2 is not finite.
    """
    d = displacement(operator, after)
    if spectrum is None:
        spectrum = lanczos(operator, 1, which=("largest",), max_products=max_products, seed=seed)
    top = spectrum.largest()[0]
    linear, quadratic = expansion(operator, d)
    squared = float(d.double() @ d.double())
    loss_after = loss_at(operator.loss, after)
    before = loss_at(operator.loss, operator.params)
    return ForgettingBound(
        gradient_term=linear,
        gradient_norm=float(operator.gradient.double().norm()),
        distance=math.sqrt(squared),
        curvature=quadratic / squared,
        lambda_max=top.value,
        lambda_residual=top.residual,
        converged=top.converged,
        bound=linear + 0.5 * (top.value + top.residual) * squared,
        prediction=linear + 0.5 * quadratic,
        measured=loss_after - before,
        loss_before=before,
        loss_after=loss_after,
    )


@dataclass(frozen=True)
class Path:
    """The loss on the straight line w1 + t d: at the places ``t`` the ``losses``, the second-order ``predictions``
    L(w1) + t g'd + 1/2 t^2 d'Hd, and the ``distances`` t ||d|| from w1."""

    t: tuple[float, ...]
    losses: tuple[float, ...]
    predictions: tuple[float, ...]
    distances: tuple[float, ...]

    def to_dict(self) -> dict[str, list[float]]:
        """JSON values."""
        return {name: list(values) for name, values in asdict(self).items()}


def loss_along_path(loss: Loss | HessianOperator, w1: Params, w2: Params, points: int | Sequence[float] = 11) -> Path:
    """The loss between ``w1`` and ``w2``, at ``points`` places evenly from 0 to 1 or at the places given, with the prediction from w1.

    In place of the loss its Hessian at w1 may be given where there is one. Costs one product and a forward pass per place.
    """
    if isinstance(points, int) and points < 2:
        raise ValueError(f"a path needs at least 2 points, not {points}")
    places = [place / (points - 1) for place in range(points)] if isinstance(points, int) else list(points)
    operator = loss if isinstance(loss, HessianOperator) else HessianOperator(loss, w1, graph_bytes=0)
    if not operator.flatten(w1).equal(operator.flatten(operator.params)):
        raise ValueError("the Hessian given was not taken at the beginning of the path")
    d = displacement(operator, w2)
    linear, quadratic = expansion(operator, d)
    start = operator.flatten(w1)
    losses = [loss_at(operator.loss, operator.unflatten(start + place * d)) for place in places]
    at_w1 = loss_at(operator.loss, operator.params)
    predictions = [at_w1 + place * linear + 0.5 * place**2 * quadratic for place in places]
    length = float(d.double().norm())
    return Path(tuple(places), tuple(losses), tuple(predictions), tuple(place * length for place in places))


def displacement(operator: HessianOperator, after: Params) -> Tensor:
    """d = w2 - w1 as a vector [n]; raises ValueError when it is zero."""
    d = operator.flatten(after) - operator.flatten(operator.params)
    if not bool(d.any()):
        raise ValueError("the parameters before and after are the same: nothing was learned in between")
    return d


def expansion(operator: HessianOperator, d: Tensor) -> tuple[float, float]:
    """g'd and d'H d."""
    v = d.double()
    return float(operator.gradient.double() @ v), float(v @ operator.matvec(d).double())
