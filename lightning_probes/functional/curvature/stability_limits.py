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

from collections.abc import Callable

import torch
from torch import Tensor


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
