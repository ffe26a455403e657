"""Passes that are to be differentiated twice: curvature needs the derivative of a gradient.

In training, a block's small operations write their gradients out and long rows go through fused attention kernels, which have no second
derivative on a CPU. Inside :func:`twice_differentiable` the same functions are made of torch's plain operations, in at least float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_TWICE: ContextVar[bool] = ContextVar("retain_twice_differentiable", default=False)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Forward passes made here can be differentiated any number of times.

    The own decoder looks at a context variable, so other threads keep their kernels. Models of transformers are kept off torch's fused
    attention kernels, which is a setting of the whole process: other threads' attention is slower meanwhile, and as right.
    """
    token = _TWICE.set(True)
    try:
        with _MATH:
            yield
    finally:
        _TWICE.reset(token)


def differentiated_twice() -> bool:
    """Whether the pass being made is inside :func:`twice_differentiable`."""
    return _TWICE.get()


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in its own type where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _MathAttention:
    """``sdpa_kernel(MATH)`` for several threads: the first one in sets it, the last one out restores what was."""

    def __init__(self) -> None:
        self._lock, self._inside, self._stack = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


_MATH = _MathAttention()
