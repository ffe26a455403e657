"""The outermost eigenvalues of a symmetric operator by Lanczos iteration with full reorthogonalisation and thick restarts.

The Krylov space of a random start grows by one product at a time; every new vector is made orthogonal to all others twice, without which
copies of converged eigenvalues appear that are not there (Parlett 1998, "The Symmetric Eigenvalue Problem", chapter 13). When the basis
is full it shrinks to the best Ritz vectors and grows on (thick restart: Wu and Simon 2000, "Thick-restart Lanczos method for large
symmetric eigenvalue problems"). One start sees one vector of every eigenspace, so when all is found, a second random start orthogonal to
it looks for what the first could not see, the further copies of a multiple eigenvalue, until nothing new appears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from retain.evaluation.curvature.operator import Operator, finite, random_unit

Which: TypeAlias = Literal["magnitude", "largest", "smallest"]
_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"magnitude": torch.abs, "largest": lambda values: values, "smallest": torch.neg}
_EVERY = 4  # products between two looks at the Ritz values
_LOOK = 8  # products of a second start before it may be said to have found nothing
_COLUMNS = 1 << 20  # of the basis that are rotated at once


@dataclass(frozen=True)
class Eigenpair:
    """``value`` with its sign, ``vector`` [n] of length 1 (on the operator's device), and ``residual`` = ||H v - value v||: an eigenvalue
    lies within ``residual`` of ``value``. ``converged``: residual <= tolerance |value|, or both are zero to rounding (100 machine epsilons
    of the largest eigenvalue)."""

    value: float
    residual: float
    converged: bool
    vector: Tensor


@dataclass(frozen=True)
class Search:
    """How far a search is: ``products`` made, ``converged`` of the ``wanted`` eigenvalues, and the largest ``residual`` of these as a share
    of its value (infinite before there are that many)."""

    products: int
    wanted: int
    converged: int
    residual: float


@dataclass(frozen=True)
class Spectrum:
    """What :func:`lanczos` found: ``pairs``, all that were asked for, from the largest value to the smallest; ``products`` with the
    operator; ``complete``: whether a second start looked for further copies of multiple eigenvalues and found none."""

    pairs: tuple[Eigenpair, ...]
    k: int
    which: tuple[Which, ...]
    size: int
    products: int
    tolerance: float
    seed: int
    complete: bool

    def by_magnitude(self) -> tuple[Eigenpair, ...]:
        """The k of largest absolute value, from the largest."""
        return self._top("magnitude")

    def largest(self) -> tuple[Eigenpair, ...]:
        """The k algebraically largest, from the largest."""
        return self._top("largest")

    def smallest(self) -> tuple[Eigenpair, ...]:
        """The k algebraically smallest, from the smallest."""
        return self._top("smallest")

    @property
    def converged(self) -> bool:
        """Whether all pairs are."""
        return all(pair.converged for pair in self.pairs)

    @property
    def is_zero(self) -> bool:
        """Whether the operator sent every vector that was tried to zero: there is no curvature at all."""
        return all(pair.value == 0 and pair.residual == 0 for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; no vectors."""
        lists: dict[str, Any] = {
            name: [{"value": pair.value, "residual": pair.residual, "converged": pair.converged} for pair in self._top(name)]
            for name in self.which
        }
        facts = {"k": self.k, "size": self.size, "products": self.products, "tolerance": self.tolerance, "seed": self.seed}
        return {**lists, **facts, "converged": self.converged, "complete": self.complete, "is_zero": self.is_zero}

    def _top(self, which: Which) -> tuple[Eigenpair, ...]:
        if which not in self.which:
            raise ValueError(f"this spectrum was not asked for the {which} eigenvalues, only for {' and '.join(self.which)}")
        order = _SCORES[which](torch.tensor([pair.value for pair in self.pairs], dtype=torch.float64)).argsort(descending=True, stable=True)
        return tuple(self.pairs[place] for place in order[: self.k].tolist())


def lanczos(
    operator: Operator, k: int, *, which: tuple[Which, ...] = ("magnitude", "largest"), tolerance: float = 1e-3, max_products: int = 300,
    basis: int | None = None, seed: int = 0, watch: Callable[[Search], None] | None = None,
) -> Spectrum:  # fmt: skip
    """The ``k`` eigenvalues (all, when there are fewer) of largest magnitude and, or, at the algebraic ends, with their vectors.

    ``tolerance``: on residual / |value|; the error of an isolated value is about the square of that, in units of its gap. ``basis``: how
    many vectors [n] are held at most, by default 3 per wanted one and 30. Ends after ``max_products``, whatever has converged by then.
    ``watch`` is told every few products how far the search is. Equal seeds give equal results. Raises ArithmeticError when a product is
    not finite.

    Residuals come from the recurrence, H V = V T + r e', which full reorthogonalisation keeps true to rounding. One last product, with a
    sum of all vectors found under random signs, measures what rounding, or an operator that is not symmetric, added to them.
    """
    unknown = set(which) - set(_SCORES)
    if k < 1 or not which or unknown:
        raise ValueError(f"lanczos needs k >= 1 and which of {', '.join(_SCORES)}, not k = {k} and {which}")
    k = min(k, operator.size)
    wanted = min(operator.size, k * len(which))
    if max_products <= wanted:
        raise ValueError(f"{max_products} products are too few: {wanted} eigenvalues need as many and one, and more to be found")
    capacity = min(operator.size, basis if basis is not None else 3 * wanted + 30)
    if capacity < min(operator.size, wanted + 3):
        raise ValueError(f"a basis of {capacity} vectors is too small for {wanted} eigenvalues: it must hold 3 more")
    space = _Krylov(operator, capacity, torch.Generator().manual_seed(seed))
    looking = complete = False
    since = 0
    while space.filled < operator.size and space.products + 1 < max_products and not complete:
        if space.filled == capacity:
            values, vectors, _ = space.ritz()
            spare = max(0, (capacity - wanted) // (2 * len(which)) - 1)
            space.shrink(values, vectors, _chosen(values, k + spare, which)[: capacity - 2])
        space.grow()
        since += 1
        if space.filled < k or (since % _EVERY and space.filled < capacity and space.direction is not None):
            continue
        values, vectors, residuals = space.ritz()
        chosen = _chosen(values, k, which)
        missing = residuals[chosen] > 0.5 * _allowed(values[chosen], space.scale, tolerance, operator.dtype)
        if watch is not None:
            largest = residuals[chosen] / values[chosen].abs().clamp_min(_floor(space.scale, operator.dtype) or 1.0)
            watch(Search(space.products, len(chosen), len(chosen) - int(missing.sum()), float(largest.max())))
        if bool(missing.any()):
            looking = False
        elif not looking:
            space.shrink(values, vectors, chosen)
            space.leave()
            looking, since = True, 0
        elif since >= _LOOK:
            complete = all(_settled(values, residuals, chosen, k, score, space.scale, operator.dtype) for score in which)
    complete = complete or space.filled == operator.size
    pairs = sorted(space.pairs(k, which, tolerance), key=lambda pair: -pair.value)
    return Spectrum(tuple(pairs), k, tuple(which), operator.size, space.products, tolerance, seed, complete)


class _Krylov:
    """An orthonormal basis [m, n] of the space searched, and the operator projected onto it, T [m, m] in float64."""

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator) -> None:
        self.operator = operator
        self.rows = torch.empty(capacity, operator.size, dtype=operator.dtype, device=operator.device)
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.direction: Tensor | None = None  # the next vector; None: a random one
        self.lost: list[Tensor] = []  # [m] each: what the products of the vectors have along a direction that was left
        self.generator = generator
        self.filled = self.products = 0
        self.remainder = self.scale = 0.0  # how much of the last product leaves the space; the largest eigenvalue so far

    def grow(self) -> None:
        """One more vector and its product."""
        q = self._random() if self.direction is None else self.direction
        self.rows[self.filled] = q
        self.filled += 1
        w = finite(self.operator.matvec(q), "product with a vector")
        self.products += 1
        self.scale = max(self.scale, float(w.norm()))
        w, coefficients = self._orthogonal(w)
        self.projected[self.filled - 1, : self.filled] = self.projected[: self.filled, self.filled - 1] = coefficients
        self.remainder = float(w.norm())
        if self.remainder <= 50 * torch.finfo(w.dtype).eps * self.scale:  # the space is invariant: only rounding is left of the product
            self.direction, self.remainder = None, 0.0
        else:
            self.direction = w / self.remainder

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values [m], their coefficients [m, m] in columns, and the norms [m] of their residuals."""
        values, vectors = torch.linalg.eigh(self.projected[: self.filled, : self.filled])
        self.scale = max(self.scale, float(values.abs().max()))
        return values, vectors, self._outside(vectors).norm(dim=0)

    def rotated(self, vectors: Tensor) -> Tensor:
        """The vectors [p, n] whose coefficients are the columns of ``vectors`` [m, p]."""
        return vectors.t().to(self.rows.device, self.rows.dtype) @ self.rows[: self.filled]

    def shrink(self, values: Tensor, vectors: Tensor, keep: Tensor) -> None:
        """Keep only the Ritz vectors ``keep``."""
        turn = vectors[:, keep].t().to(self.rows.device, self.rows.dtype)
        for first in range(0, self.operator.size, _COLUMNS):
            columns = slice(first, first + _COLUMNS)
            self.rows[: len(keep), columns] = turn @ self.rows[: self.filled, columns]
        self.lost = [vectors[: len(lost), keep].t() @ lost for lost in self.lost]
        self.coupled = self.remainder * vectors[-1, keep]
        self.filled = len(keep)
        self.projected.zero_()
        self.projected.diagonal()[: self.filled] = values[keep]

    def leave(self) -> None:
        """After :meth:`shrink`: go on from a random start instead of the direction that the products of the vectors kept point to."""
        self.lost.append(self.coupled)
        self.direction, self.remainder = None, 0.0

    def pairs(self, k: int, which: tuple[Which, ...], tolerance: float) -> list[Eigenpair]:
        """The best pairs, with residuals to which one product, of the sum of all vectors with random signs, adds what rounding did."""
        values, vectors, _ = self.ritz()
        chosen = _chosen(values, k, which)
        values, vectors = values[chosen], vectors[:, chosen]
        found = self.rotated(vectors)
        signs = torch.randint(0, 2, (len(chosen),), generator=self.generator).double() * 2 - 1
        with_signs, with_values = torch.stack([signs, signs * values]).to(found.device, found.dtype) @ found
        product = finite(self.operator.matvec(with_signs), "product with a vector")
        self.products += 1
        outside = self._outside(vectors)
        measured = float((product - with_values).double().square().sum())
        excess = max(0.0, measured - float((outside @ signs).square().sum())) / len(chosen)
        residuals = (outside.square().sum(0) + excess).sqrt()
        allowed = _allowed(values, self.scale, tolerance, self.operator.dtype)
        return [
            Eigenpair(float(value), float(residual), bool(residual <= most), vector / vector.norm())
            for value, residual, most, vector in zip(values, residuals, allowed, found, strict=True)
        ]

    def _outside(self, vectors: Tensor) -> Tensor:
        """What the products of the vectors [m, p] have outside of the space: one row [p] for every direction."""
        return torch.stack([self.remainder * vectors[-1], *(lost @ vectors[: len(lost)] for lost in self.lost)])

    def _orthogonal(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """``w`` without its part in the space, and the coefficients [m] of that. Twice is enough (Parlett 1998, section 6.9)."""
        rows = self.rows[: self.filled]
        first = rows @ w
        w = w - first @ rows
        second = rows @ w
        return w - second @ rows, (first.double() + second.double()).cpu()

    def _random(self) -> Tensor:
        """A random unit vector orthogonal to the space."""
        w = random_unit(self.operator, self.generator)
        for _ in range(2):
            w = self._orthogonal(w)[0]
            w = w / w.norm()
        return w


def _chosen(values: Tensor, k: int, which: tuple[Which, ...]) -> Tensor:
    """The places of the best ``k`` by every score, each once, best first."""
    orders = [_SCORES[name](values).argsort(descending=True, stable=True)[:k].tolist() for name in which]
    return torch.tensor(list(dict.fromkeys(place for places in zip(*orders, strict=True) for place in places)))


def _floor(scale: float, dtype: torch.dtype) -> float:
    """What is zero to rounding beside the largest eigenvalue."""
    return 100 * torch.finfo(dtype).eps * scale


def _allowed(values: Tensor, scale: float, tolerance: float, dtype: torch.dtype) -> Tensor:
    """The residual at which a value counts as converged."""
    floor = _floor(scale, dtype)
    return torch.where(values.abs() > floor, tolerance * values.abs(), torch.full_like(values, floor))


def _settled(values: Tensor, residuals: Tensor, chosen: Tensor, k: int, score: Which, scale: float, dtype: torch.dtype) -> bool:
    """Whether the best value of the second start is known well enough to say that it is not among the best k."""
    scores = _SCORES[score](values)
    last = scores.argsort(descending=True, stable=True)[k - 1]
    others = scores.clone()
    others[chosen] = -torch.inf
    best = others.argmax()
    gap = float(scores[last] - others[best])
    return float(residuals[best]) <= max(gap, 0.05 * float(values[last].abs()) + _floor(scale, dtype))
