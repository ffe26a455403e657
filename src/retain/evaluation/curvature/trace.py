"""Trace of a symmetric operator by Hutch++, and the density of its eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from retain.evaluation.curvature.operator import Operator, finite, random_unit


@dataclass(frozen=True)
class TraceEstimate:
    """``value``; ``error``, its standard error (0 where the trace is exact, NaN where one probe alone tells nothing of it); ``products``
    made. ``captured``: the part of the value that is exact; where it is nearly all, the error is small whatever the probes say."""

    value: float
    error: float
    captured: float
    products: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def hutchpp(operator: Operator, products: int = 99, *, seed: int = 0) -> TraceEstimate:
    """Trace of H with about ``products`` products (Hutch++: Meyer et al., 2010.09649, algorithm 1).

    With S and G [n, m / 3] of random signs and Q an orthonormal basis of H S, P = 1 - Q Q':

        tr H  ~  tr(Q' H Q) + 3/m tr(G' P H P G)

    The first term is exact for what Q spans, the large eigenvalues; the second is Hutchinson's estimate of the rest, and the spread of its
    m/3 probes is the error. Unbiased, of variance O(1 / m^2) for a semidefinite H, while Hutchinson's alone has O(1 / m).
    """
    if products < 3:
        raise ValueError(f"Hutch++ needs at least 3 products, not {products}")
    generator = torch.Generator().manual_seed(seed)
    count = min(products // 3, operator.size)
    spanned = torch.stack([finite(operator.matvec(_signs(operator, generator)), "product with a vector") for _ in range(count)], 1)
    q = torch.linalg.qr(spanned).Q  # [n, m / 3]
    captured = sum(_quadratic(operator, column) for column in q.unbind(1))
    if count == operator.size:
        return TraceEstimate(captured, 0.0, captured, 2 * count, seed)
    rest = []
    for _ in range(count):
        probe = _signs(operator, generator)
        rest.append(_quadratic(operator, probe - q @ (q.t() @ probe)))
    values = torch.tensor(rest, dtype=torch.float64)
    error = float(values.std() / math.sqrt(count)) if count > 1 else math.nan
    return TraceEstimate(captured + float(values.mean()), error, captured, 3 * count, seed)


@dataclass(frozen=True)
class Density:
    """The density of the eigenvalues, a distribution over [n]: ``density`` on ``grid`` (float64 [points]), Gaussians of width ``sigma``
    around ``nodes`` with ``weights``, float64 [probes, steps], which sum to 1. ``mean``: of the eigenvalues, trace / n, and its standard
    error over the probes (NaN for one probe)."""

    grid: Tensor
    density: Tensor
    nodes: Tensor
    weights: Tensor
    sigma: float
    mean: float
    mean_error: float
    products: int
    seed: int

    def share(self, low: float, high: float) -> float:
        """Share of the eigenvalues between ``low`` and ``high``, without smoothing."""
        return float(self.weights[(self.nodes >= low) & (self.nodes <= high)].sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the curve, not the nodes."""
        facts = {"sigma": self.sigma, "mean": self.mean, "mean_error": self.mean_error, "products": self.products, "seed": self.seed}
        return {"grid": self.grid.tolist(), "density": self.density.tolist(), **facts}


def spectral_density(
    operator: Operator, probes: int = 8, steps: int = 60, *, sigma: float | None = None, points: int = 2048, seed: int = 0
) -> Density:
    """Density of the eigenvalues by stochastic Lanczos quadrature (Ghorbani et al., 1901.10159, section 2; Ubaru et al. 2017).

    From a random unit vector v, ``steps`` steps of Lanczos give a tridiagonal matrix with eigenvalues theta_l and eigenvectors y_l; the
    nodes theta_l with the weights (first entry of y_l)^2 are the Gauss quadrature of v' delta(t - H) v, whose mean over v is the density.
    ``sigma``: the width of smoothing, by default a hundredth of the range. Full reorthogonalisation; ``steps`` + 1 vectors are held.
    """
    if probes < 1 or steps < 1 or (sigma is not None and sigma <= 0):
        raise ValueError("a spectral density needs at least one probe, one step, and a width above zero")
    generator = torch.Generator().manual_seed(seed)
    steps = min(steps, operator.size)
    nodes = torch.zeros(probes, steps, dtype=torch.float64)
    weights = torch.zeros(probes, steps, dtype=torch.float64)
    products = 0
    for probe in range(probes):
        values, vectors = torch.linalg.eigh(_tridiagonal(operator, random_unit(operator, generator), steps))
        products += len(values)
        nodes[probe, : len(values)] = values
        weights[probe, : len(values)] = vectors[0].square() / probes
        nodes[probe, len(values) :] = values[-1]  # of weight 0: the space ended earlier, the quadrature is exact
    spread = float(nodes.max() - nodes.min())
    width = sigma if sigma is not None else max(spread / 100, 1e-6 * float(nodes.abs().max())) or 1.0
    low, high = float(nodes.min()) - 6 * width, float(nodes.max()) + 6 * width
    grid = torch.linspace(low, high, max(points, math.ceil(3 * (high - low) / width)), dtype=torch.float64)  # 3 points in a width at least
    density = torch.zeros_like(grid)
    for row, share in zip(nodes, weights, strict=True):
        density += torch.exp(-0.5 * ((grid[:, None] - row) / width).square()) @ share / (width * math.sqrt(2 * math.pi))
    means = (nodes * weights).sum(1) * probes
    error = float(means.std() / math.sqrt(probes)) if probes > 1 else math.nan
    return Density(grid, density, nodes, weights, width, float(means.mean()), error, products, seed)


def _tridiagonal(operator: Operator, start: Tensor, steps: int) -> Tensor:
    """The operator on the Krylov space of a unit vector, float64 [m, m]; m < steps when the space ends earlier."""
    rows = torch.empty(steps, operator.size, dtype=operator.dtype, device=operator.device)
    alphas: list[float] = []
    betas: list[float] = []
    q, scale = start, 0.0
    for step in range(steps):
        rows[step] = q
        w = finite(operator.matvec(q), "product with a vector")
        scale = max(scale, float(w.norm()))
        alphas.append(float(q.double() @ w.double()))
        for _ in range(2):
            w = w - (rows[: step + 1] @ w) @ rows[: step + 1]
        beta = float(w.norm())
        if beta <= 50 * torch.finfo(w.dtype).eps * scale or step + 1 == steps:
            break
        betas.append(beta)
        q = w / beta
    off = torch.tensor(betas, dtype=torch.float64)
    return torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)


def _signs(operator: Operator, generator: torch.Generator) -> Tensor:
    """A vector [n] of random signs, drawn on the CPU, so that every device gets the same."""
    return (2.0 * torch.randint(0, 2, (operator.size,), generator=generator) - 1.0).to(operator.device, operator.dtype)


def _quadratic(operator: Operator, v: Tensor) -> float:
    return float(v.double() @ finite(operator.matvec(v), "product with a vector").double())
