"""The term whose expectation is the trace of the Fisher information, on one training batch, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_probes.functional.curvature.hvp import double_backward_kernels, gradient
from lightning_probes.functional.curvature.squared_gradient import squared_gradient
from lightning_probes.functional.likelihood import Likelihood
from lightning_probes.functional.parameter_vector import to_dict
from lightning_probes.probing.view import ModelView


def fisher_term(
    view: ModelView, likelihood: Likelihood, exclude_norm: bool = False, only_value: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """The squared gradient norm of the mean log-likelihood of sampled labels, times the number of samples.

    Args:
        view: The module in training mode, and one batch.
        likelihood: Draws the labels, one for each target element.
        exclude_norm: Leave the parameters of normalisation layers out of the norm.
        only_value: Skip the gradient.

    Returns:
        The value, and its gradient by parameter name: both are means over the processes, each of which has its own
        batch and labels.
    """
    batch, samples = view.probe_set().first, 1

    def surprise(params: Mapping[str, Tensor]) -> Tensor:
        nonlocal samples
        logits, targets = view.logits(batch, params)
        samples = len(logits)
        return likelihood.nll(logits, likelihood.sample(logits.detach(), view.generator(1), targets))[0]

    params, left_out = view.params, _of_norm_layers(view) if exclude_norm else frozenset[str]()
    with double_backward_kernels():
        if only_value:
            slopes = to_dict(gradient(surprise, params)[1], params)
            value = sum(slope.square().sum() for name, slope in slopes.items() if name not in left_out)
            return _mean(view, torch.as_tensor(value).reshape(1) / samples)[0].item(), {}
        value, slope = squared_gradient(surprise, params, left_out)
    both = _mean(view, torch.cat([value.reshape(1).to(slope), slope]) / samples)
    return both[0].item(), to_dict(both[1:], params)


def _of_norm_layers(view: ModelView) -> frozenset[str]:
    """Parameters of layers whose class calls itself a normalisation, as those of PyTorch and Transformers do."""
    return frozenset(
        f"{place}.{name}" if place else name
        for place, layer in view.module.named_modules()
        if "norm" in type(layer).__name__.lower()
        for name, _ in layer.named_parameters(recurse=False)
    )


def _mean(view: ModelView, tensor: Tensor) -> Tensor:
    return view.sum_over_processes(tensor) / view.processes.size
