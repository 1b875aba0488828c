"""The sharpness above which an optimizer with its current settings is unstable.

On a quadratic loss with Hessian H an optimizer's steps are a linear recurrence. It is stable while every eigenvalue of
H is below a threshold (Cohen et al. 2021, arXiv:2103.00065). For Adam the threshold holds for the preconditioned
Hessian (Cohen et al. 2022, arXiv:2207.14484):

    gradient descent        2 / lr
    heavy ball              (2 + 2 momentum) / (lr (1 - dampening))
    Nesterov                (2 + 2 momentum) / (lr (1 + 2 momentum))
    Adam, AdamW, AMSGrad    (2 + 2 beta1) / (lr (1 - beta1)), for P^-1 H with P from `adam_preconditioner`

The functions return the inverse, S = 1 / threshold: a number for an SGD-like parameter group, a tensor for an Adam-like
parameter. The largest eigenvalue of S^1/2 H S^1/2 is then the stability ratio of the whole optimizer; it is 1 at the
edge of stability. All settings may differ between groups. Weight decay is left out: it adds less than decay * lr to the
ratio of SGD. Clipping a gradient to a fraction c of its length multiplies the ratio by c. The thresholds are those of
full-batch training; with mini-batches the ratio settles below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_probes.functional.inner_product import norm
from lightning_probes.functional.wide import on_host

_ROUNDING = 1e-6


def sgd_inverse_threshold(lr: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> float:
    """One over the largest stable curvature of `torch.optim.SGD`.

    Args:
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum; no effect if `momentum` is 0, as in torch.
        nesterov: Whether the momentum is Nesterov's.

    Returns:
        Curvature below `1 / result` is stable. 0 for a learning rate of 0, where any curvature is stable.

    Example:
        >>> 1 / sgd_inverse_threshold(lr=0.1)
        20.0
        >>> round(1 / sgd_inverse_threshold(lr=0.1, momentum=0.9), 6)
        38.0
    """
    if momentum == 0:
        return lr / 2
    amplification = 1 + 2 * momentum if nesterov else 1 - dampening
    return lr * amplification / (2 + 2 * momentum)


def adam_preconditioner(exp_avg_sq: Tensor, step: float | Tensor, beta1: float, beta2: float, eps: float) -> Tensor:
    """The diagonal P of Adam's preconditioner: one step is `-lr * exp_avg / P`.

    P = (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), both bias corrections included.

    Args:
        exp_avg_sq: Running mean v of squared gradients (`max_exp_avg_sq` under `amsgrad=True`).
        step: Number t of steps taken so far, as in the optimizer's state.
        beta1: Decay of the running mean of gradients.
        beta2: Decay of the running mean of squared gradients.
        eps: The optimizer's eps.

    Returns:
        P, like `exp_avg_sq`.

    Raises:
        ValueError: If `step` is below 1: the optimizer has no preconditioner before its first step.

    Example:
        >>> adam_preconditioner(torch.tensor([4.0]), step=10_000, beta1=0.9, beta2=0.99, eps=0.0)
        tensor([2.])
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {float(step)}: the preconditioner exists after the first step")
    t = float(step)
    bias1: float = 1 - beta1**t
    bias2: float = 1 - beta2**t
    return bias1 * (torch.sqrt(exp_avg_sq / bias2) + eps)


def adam_inverse_threshold(lr: float, beta1: float, preconditioner: Tensor) -> Tensor:
    """One over the largest stable curvature of each parameter under Adam with its preconditioner held fixed.

    Args:
        lr: Learning rate.
        beta1: Decay of the running mean of gradients.
        preconditioner: P of `adam_preconditioner`. If the gradient of a parameter was always zero, P is about eps and
            the result is huge, but such a parameter has no curvature either.

    Returns:
        `lr (1 - beta1) / ((2 + 2 beta1) P)`, like `preconditioner`.

    Example:
        >>> 1 / adam_inverse_threshold(lr=1e-3, beta1=0.9, preconditioner=torch.ones(1))
        tensor([38000.])
    """
    return lr * (1 - beta1) / (2 + 2 * beta1) / preconditioner


def is_young(step: float | Tensor, beta1: float) -> bool:
    """Whether Adam's preconditioner still changes faster than its momentum, so that it can't be taken as constant.

    It is then a mean over few gradients: if they happened to be near zero for a parameter, so is the preconditioner,
    until the next step.

    Example:
        >>> is_young(9, beta1=0.9), is_young(10, beta1=0.9)
        (True, False)
    """
    return float(step) < round(1 / (1 - beta1))


def asleep(inverse_preconditioner: Mapping[str, Tensor], eps: Mapping[str, float]) -> dict[str, Tensor]:
    """Coordinates whose gradients in training were zero up to rounding, so that they have no part in its dynamics.

    A bias before a BatchNorm is an example. It has no gradient in training, and its preconditioner is eps or rounding
    errors. But it has curvature in eval mode, in which curvature is measured.

    Args:
        inverse_preconditioner: One over `adam_preconditioner`, by parameter.
        eps: For each parameter, the value of its preconditioner if the gradient was always zero.

    Returns:
        A mask for each parameter.

    Example:
        >>> asleep({"weight": 1 / torch.tensor([0.1, 1e-8])}, {"weight": 1e-8})
        {'weight': tensor([False,  True])}
    """
    if not inverse_preconditioner:
        return {}
    largest = 1 / torch.stack([tensor.min() for tensor in inverse_preconditioner.values()]).min()
    return {
        name: 1 / tensor <= (_ROUNDING * largest).clamp(min=2 * eps[name])
        for name, tensor in inverse_preconditioner.items()
    }


def clipping_factor(limit: float | None, gradient: Tensor) -> float:
    """The factor by which clipping by norm multiplies a gradient, and so the learning rate and the stability ratio.

    The factor is the same for Adam: its preconditioner is computed from clipped gradients, the Hessian from unclipped
    ones.

    Args:
        limit: The norm to which training clips gradients, if it does.
        gradient: Gradient of the loss, shape `(n,)`. Gradients of mini-batches are longer, so their factor is smaller.

    Returns:
        1.0 if nothing is clipped.

    Example:
        >>> clipping_factor(0.5, torch.tensor([3.0, 4.0]))
        0.1
    """
    if limit is None or limit <= 0:
        return 1.0
    return float(on_host((limit / norm(gradient)).clamp(max=1.0)))


def preconditioned(matvec: Callable[[Tensor], Tensor], scale: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with S^1/2 H S^1/2 for a diagonal S: symmetric, with the eigenvalues of S H.

    Args:
        matvec: Maps v, shape `(n,)`, to H v.
        scale: Diagonal of S, shape `(n,)`, non-negative: inverse thresholds for the stability ratio, `1 / P` for the
            preconditioned Hessian.

    Returns:
        A function that maps v to S^1/2 H S^1/2 v, with one product with H per call.

    Example:
        >>> ratio = preconditioned(lambda v: 20 * v, scale=torch.full((2,), sgd_inverse_threshold(lr=0.1)))
        >>> ratio(torch.ones(2))
        tensor([1., 1.])
    """
    root = torch.sqrt(scale)
    return lambda vector: root * matvec(root * vector)
