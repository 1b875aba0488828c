"""The likelihood of labels given a model's outputs: samples, log-likelihood, and its derivative.

Class weights, label smoothing and reductions of a loss do not enter. A sample's log-likelihood is the sum over its
target elements (the tokens of a sequence, the labels of a multi-label task).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_probes.functional.wide import at_least_single

LikelihoodName: TypeAlias = Literal["auto", "categorical", "bernoulli", "gaussian"]


@dataclass(frozen=True)
class Categorical:
    """One of several classes at each position; outputs are the logits of a softmax.

    Args:
        class_dim: Dim of the logits that holds the classes. Labels have the other dims.
        ignore_index: Label of positions that are ignored.

    Example:
        >>> likelihood = Categorical()
        >>> logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
        >>> likelihood.score(logits, torch.tensor([1, 0]))
        tensor([[-0.5000,  0.5000],
                [ 0.0000,  0.0000]])
    """

    class_dim: int = -1
    ignore_index: int = -100

    def sample(self, logits: Tensor, generator: torch.Generator, targets: Tensor | None = None) -> Tensor:
        """Labels drawn from the model; `ignore_index` at positions where `targets` have it.

        Args:
            logits: Shape `(samples, ...)`.
            generator: The only source of randomness, on the logits' device.
            targets: Same shape as the labels.
        """
        probabilities = at_least_single(logits).softmax(self.class_dim).movedim(self.class_dim, -1)
        # One number per position, looked up in the cumulative distribution. Integer sums are the same on every device.
        # Non-finite logits give some label, and the result shows them; torch.multinomial would raise.
        cumulative = (probabilities * 2**40).long().cumsum(-1)
        draws = torch.randint(2**40, (*cumulative.shape[:-1], 1), generator=generator, device=logits.device)
        labels = torch.searchsorted(cumulative, draws, right=True).squeeze(-1).clamp_(max=probabilities.shape[-1] - 1)
        return labels if targets is None else labels.masked_fill(~self.counted(targets), self.ignore_index)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Derivative of each position's log-likelihood by its logits: one-hot minus softmax; 0 where ignored."""
        score = -at_least_single(logits).softmax(self.class_dim)
        classes, unknown = self._classes(labels.unsqueeze(self.class_dim), logits)
        score.scatter_add_(self.class_dim, classes, torch.ones_like(classes, dtype=score.dtype))
        score.masked_fill_(unknown, torch.nan).masked_fill_(~self.counted(labels).unsqueeze(self.class_dim), 0)
        return score.to(logits.dtype)

    def exact_scores(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """Vectors b whose outer products b b^T sum to diag(p) - p p^T, the covariance of the score over labels.

        Their squared gradient norms sum to the expectation over labels. This needs no sampling, and one backward pass
        less than there are classes. Drawing a label is equivalent to a sequence of binary choices, "this class, or a
        later one?". Their Fisher information adds up, and each b is the score of one of these choices.

        Raises:
            ValueError: If a sample has several positions: the number of labelings then grows exponentially with them.
        """
        classes = logits.shape[self.class_dim]
        if logits.numel() != len(logits) * classes:
            raise ValueError(
                f"exact scores need one position per sample, but logits of shape {tuple(logits.shape)} have "
                f'{logits[0].numel() // classes}: set labels="sampled"'
            )
        log_p = at_least_single(logits).log_softmax(self.class_dim).movedim(self.class_dim, -1)
        if targets is not None:
            counted = self.counted(targets).unsqueeze(-1)
        lowest = torch.finfo(log_p.dtype).min  # instead of -inf, when no class is possible any more
        for label in range(exact_passes(self, logits)):
            chosen, others = log_p[..., label : label + 1], log_p[..., label + 1 :]
            reached, later = (part.logsumexp(-1, True).clamp(min=lowest) for part in (log_p[..., label:], others))
            score = torch.cat([torch.ones_like(chosen), -(others - later).exp()], -1)
            score *= ((chosen + later - reached) / 2).exp()
            if targets is not None:
                score = score.where(counted, 0)
            yield F.pad(score, (label, 0)).movedim(-1, self.class_dim).to(logits.dtype)

    def nll(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the negative log-likelihood over positions, in nats, and the number of positions that count."""
        log_probabilities = at_least_single(logits).log_softmax(self.class_dim)
        return self.nll_at_positions(log_probabilities, targets).sum(), self.counted(targets).sum()

    def nll_at_positions(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each position, in nats; 0 if ignored, NaN if the target is not a class."""
        classes, unknown = self._classes(targets.unsqueeze(self.class_dim), log_probabilities)
        chosen = log_probabilities.gather(self.class_dim, classes).masked_fill(unknown, torch.nan)
        return -chosen.squeeze(self.class_dim).masked_fill(~self.counted(targets), 0)

    def counted(self, targets: Tensor) -> Tensor:
        """Mask of the targets that count."""
        return targets.long() != self.ignore_index  # long, because -100 as uint8 is 156

    def accuracy_counts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Number of positions with the largest logit at the target, and number of positions that count."""
        counted = self.counted(targets)
        return ((logits.argmax(self.class_dim) == targets) & counted).sum(), counted.sum()

    def _classes(self, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Labels as indices of classes (0 for labels that are not a class), and a mask of those labels.

        An index out of range is never used, because on a GPU it ends the process.
        """
        labels = labels.long()
        unknown = (labels < 0) | (labels >= logits.shape[self.class_dim])
        return labels.masked_fill(unknown, 0), unknown


@dataclass(frozen=True)
class Bernoulli:
    """Independent yes-or-no labels, one for each output; outputs are the logits of a sigmoid.

    Example:
        >>> Bernoulli().score(torch.tensor([[0.0, 100.0]]), torch.tensor([[1, 1]]))
        tensor([[0.5000, 0.0000]])
    """

    def sample(self, logits: Tensor, generator: torch.Generator, targets: Tensor | None = None) -> Tensor:
        """Labels 0 and 1 drawn from the model, in the dtype of the logits."""
        probabilities = at_least_single(logits).sigmoid()
        draws = torch.rand(logits.shape, generator=generator, dtype=probabilities.dtype, device=logits.device)
        return (draws < probabilities).to(logits.dtype)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Derivative of the log-likelihood by the logits: label minus sigmoid."""
        return like_outputs(labels, logits) - logits.sigmoid()

    def exact_scores(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """For each output, the standard deviation of its label there and 0 elsewhere: one backward pass per output."""
        deviations = at_least_single(logits).sigmoid()
        return _one_output_each((deviations * (1 - deviations)).sqrt().to(logits.dtype))

    def nll(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the negative log-likelihood over labels, in nats, and the number of labels."""
        outputs = at_least_single(logits)
        total = F.binary_cross_entropy_with_logits(outputs, like_outputs(targets, outputs), reduction="sum")
        return total, _number(logits)


@dataclass(frozen=True)
class Gaussian:
    """Real-valued labels with unit variance around each output (least squares).

    Example:
        >>> Gaussian().nll(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
        (tensor(2.), tensor(2))
    """

    def sample(self, logits: Tensor, generator: torch.Generator, targets: Tensor | None = None) -> Tensor:
        """Outputs plus standard normal noise."""
        return logits + torch.randn(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Derivative of the log-likelihood by the outputs: label minus output."""
        return like_outputs(labels, logits) - logits

    def exact_scores(self, logits: Tensor, targets: Tensor | None = None) -> Iterator[Tensor]:
        """For each output, 1 there and 0 elsewhere: one backward pass per output."""
        return _one_output_each(torch.ones_like(logits))

    def nll(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Half the sum of squared errors over outputs (without the constant), and the number of outputs."""
        outputs = at_least_single(logits)
        return (like_outputs(targets, outputs) - outputs).square().sum() / 2, _number(logits)


Likelihood: TypeAlias = Categorical | Bernoulli | Gaussian


def check_likelihood(name: str) -> None:
    """Check that a name is one of `LikelihoodName`.

    Raises:
        ValueError: If it is not; the error lists the names.
    """
    if name not in get_args(LikelihoodName):
        names = ", ".join(map(repr, get_args(LikelihoodName)))
        raise ValueError(f"likelihood must be one of {names}, got {name!r}")


def infer_likelihood(name: LikelihoodName, logits: Tensor, targets: Tensor | None = None) -> Likelihood:
    """The likelihood that fits a model's outputs and its targets.

    Args:
        name: "auto" recognises only categorical outputs: integer targets with logits over several classes, in the last
            dim or dim 1.
        logits: Outputs of the model, shape `(samples, ...)`.
        targets: If missing, a named likelihood is not checked, and the classes are in the last dim.

    Raises:
        ValueError: If the name is unknown; if "auto" does not apply; if shapes or dtypes don't fit the likelihood; or
            if categorical outputs are probabilities: rows that are non-negative and sum to 1.

    Example:
        >>> infer_likelihood("auto", torch.zeros(8, 10, 4, 4), torch.zeros(8, 4, 4, dtype=torch.long))
        Categorical(class_dim=1, ignore_index=-100)
    """
    check_likelihood(name)
    found = f"found outputs {_described(logits)} and " + (
        "no targets" if targets is None else f"targets {_described(targets)}"
    )
    if not logits.is_floating_point() or logits.ndim == 0:
        raise ValueError(f"outputs must be real numbers, one row per sample, {found}: set predict_fn=")
    if name == "auto":
        dims = [] if targets is None else class_dims(logits, targets)
        if not dims or logits.shape[dims[0]] == 1:
            raise ValueError(
                "the likelihood can be inferred only for integer targets with logits over several classes, "
                f'{found}: set likelihood="categorical", "bernoulli" or "gaussian", or predict_fn= to return other '
                "outputs"
            )
    elif name == "categorical":
        dims = class_dims(logits, targets) if targets is not None else [-1] if logits.ndim in (2, 3) else []
        if not dims:
            raise ValueError(
                "a categorical likelihood needs integer class indices and logits with one more dim, the last or dim 1, "
                f"{found}: set predict_fn= to return such tensors, or another likelihood="
            )
    else:
        if targets is not None:
            like_outputs(targets, logits)
        return Bernoulli() if name == "bernoulli" else Gaussian()
    if any(_are_probabilities(logits, dim) for dim in dims):
        raise ValueError(
            "the model's outputs are probabilities (non-negative, rows sum to 1), but logits are needed: set "
            "predict_fn= to return the input of the softmax, or log-probabilities"
        )
    return Categorical(dims[0])


def class_dims(logits: Tensor, targets: Tensor) -> list[int]:
    """Dims of the logits that may hold the classes, given integer targets: the last one, dim 1, or both.

    Example:
        >>> class_dims(torch.zeros(8, 10, 10), torch.zeros(8, 10, dtype=torch.long))
        [-1, 1]
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return []
    last = [-1] if targets.shape == logits.shape[:-1] else []
    second = [1] if logits.ndim > 2 and targets.shape == logits.shape[:1] + logits.shape[2:] else []
    return last + second


def exact_passes(likelihood: Likelihood, logits: Tensor) -> int:
    """Number of tensors from `exact_scores`; each needs one backward pass.

    Example:
        >>> exact_passes(Categorical(), torch.zeros(8, 10)), exact_passes(Bernoulli(), torch.zeros(8, 10))
        (9, 10)
    """
    if isinstance(likelihood, Categorical):
        return max(1, logits.shape[likelihood.class_dim] - 1)
    return logits[:1].numel()


def like_outputs(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the outputs' shape and dtype. Missing or additional dims of size 1 are allowed.

    Raises:
        ValueError: If there is not one label for each output. Broadcasting would compare every output with every label.
    """
    if labels.shape != outputs.shape:
        sizes = [[size for size in tensor.shape if size != 1] for tensor in (labels, outputs)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"need one label for each output, found labels {_described(labels)} and outputs {_described(outputs)}: "
                "set predict_fn= to return (outputs, targets) of one shape"
            )
        labels = labels.reshape(outputs.shape)
    return labels.to(outputs.dtype)


def _are_probabilities(logits: Tensor, class_dim: int) -> bool:
    sums = at_least_single(logits).sum(class_dim)
    tolerance = max(1e-4, 4 * torch.finfo(logits.dtype).eps)
    return bool(logits.shape[class_dim] > 1 and ((logits >= 0).all() & ((sums - 1).abs() < tolerance).all()))


def _one_output_each(values: Tensor) -> Iterator[Tensor]:
    rows = values.reshape(len(values), -1)
    for output in range(rows.shape[1]):
        cotangent = torch.zeros_like(rows)
        cotangent[:, output] = rows[:, output]
        yield cotangent.view(values.shape)


def _number(tensor: Tensor) -> Tensor:
    return torch.tensor(tensor.numel(), device=tensor.device)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
