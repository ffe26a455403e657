"""Curvature of a loss: Hessian products, outermost eigenvalues, trace and density, the Fisher spectrum, and what they say of forgetting.

Everything speaks of ``Params``, a dictionary of tensors, and of a loss, a function from these to a scalar: an adapter's factors, the dense
change that they make, and any network's parameters work alike.
"""

from retain.evaluation.curvature.bound import ForgettingBound, Path, forgetting_bound, loss_along_path
from retain.evaluation.curvature.gram import GramSpectrum, gram_spectrum
from retain.evaluation.curvature.lanczos import Eigenpair, Search, Spectrum, lanczos
from retain.evaluation.curvature.losses import adapter_loss, example_losses, module_loss
from retain.evaluation.curvature.operator import BatchedLoss, HessianOperator, Loss, Operator, Params, loss_at
from retain.evaluation.curvature.product import ProductObjective, dense_deltas, product_space
from retain.evaluation.curvature.trace import Density, TraceEstimate, hutchpp, spectral_density

__all__ = [
    "BatchedLoss",
    "Density",
    "Eigenpair",
    "ForgettingBound",
    "GramSpectrum",
    "HessianOperator",
    "Loss",
    "Operator",
    "Params",
    "Path",
    "ProductObjective",
    "Search",
    "Spectrum",
    "TraceEstimate",
    "adapter_loss",
    "dense_deltas",
    "example_losses",
    "forgetting_bound",
    "gram_spectrum",
    "hutchpp",
    "lanczos",
    "loss_along_path",
    "loss_at",
    "module_loss",
    "product_space",
    "spectral_density",
]
