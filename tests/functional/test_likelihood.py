from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_probes.functional.likelihood import Bernoulli, Categorical, Gaussian, Likelihood, infer_likelihood
from lightning_probes.functional.per_sample.squared_norms import choose_methods, per_sample_squared_grad_norms

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
LIKELIHOODS: dict[str, Likelihood] = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(likelihood: Likelihood, logits: Tensor) -> Tensor:
    return likelihood.sample(logits, generator())


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(1), dtype=torch.float64)


def trace(module: nn.Module, x: Tensor, scores: Callable[[Tensor], Iterable[Tensor]]) -> Tensor:
    """Squared gradient norms of each sample, summed over parameters, shape `(scores, samples)`."""
    return torch.stack([*per_sample_squared_grad_norms(module, lambda: module(x), scores).values()]).sum(0)


# -- What the numbers mean ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_score_is_the_derivative_of_the_log_likelihood(name: str) -> None:
    likelihood = LIKELIHOODS[name]
    logits = LOGITS.clone().requires_grad_()
    labels = labels_of(likelihood, LOGITS)
    (expected,) = torch.autograd.grad(-likelihood.nll(logits, labels)[0], logits)
    torch.testing.assert_close(likelihood.score(LOGITS, labels), expected)


def test_negative_log_likelihoods_are_those_of_torch_distributions() -> None:
    classes, bits, reals = torch.tensor([2, 0]), torch.tensor([[1, 0, 1], [0, 0, 1]]), floats(2, 3)
    torch.testing.assert_close(
        Categorical().nll(LOGITS, classes)[0], -torch.distributions.Categorical(logits=LOGITS).log_prob(classes).sum()
    )
    torch.testing.assert_close(
        Bernoulli().nll(LOGITS, bits)[0], -torch.distributions.Bernoulli(logits=LOGITS).log_prob(bits.double()).sum()
    )
    normal = -torch.distributions.Normal(LOGITS, 1.0).log_prob(reals).sum() - 6 * math.log(2 * math.pi) / 2
    torch.testing.assert_close(Gaussian().nll(LOGITS, reals)[0], normal)
    assert [int(Categorical().nll(LOGITS, classes)[1]), int(Bernoulli().nll(LOGITS, bits)[1])] == [2, 6]
    assert int(Gaussian().nll(LOGITS, reals)[1]) == 6


def test_sampled_labels_have_the_models_mean() -> None:
    draws = 20_000
    rows = LOGITS[:1].expand(draws, -1)
    classes = F.one_hot(Categorical().sample(rows, generator()), 3).double()
    bits = Bernoulli().sample(rows, generator())
    reals = Gaussian().sample(rows, generator())
    for values, mean, variance in (
        (classes, LOGITS[0].softmax(0), LOGITS[0].softmax(0) * (1 - LOGITS[0].softmax(0))),
        (bits, LOGITS[0].sigmoid(), LOGITS[0].sigmoid() * (1 - LOGITS[0].sigmoid())),
        (reals, LOGITS[0], torch.ones(3)),
    ):
        assert ((values.mean(0) - mean).abs() < 4 * (variance / draws).sqrt()).all()
    assert abs(float(reals.var(0).mean()) - 1) < 4 * math.sqrt(2 / (3 * draws))


def test_classes_without_probability_are_never_sampled() -> None:
    logits = torch.full((500, 6), -math.inf)
    logits[:, 2], logits[:, 4] = 0.0, 1.0
    assert set(Categorical().sample(logits, generator()).tolist()) == {2, 4}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sampling_draws_from_the_given_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (LIKELIHOODS[name].sample(floats(50, 3), generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_scored_in_their_own_dtype(name: str, dtype: torch.dtype) -> None:
    likelihood, logits = LIKELIHOODS[name], LOGITS.to(dtype)
    labels = labels_of(likelihood, logits)
    score = likelihood.score(logits, labels)
    assert score.dtype == dtype
    torch.testing.assert_close(score.double(), likelihood.score(logits.double(), labels), atol=2e-2, rtol=1e-2)
    exact = zip(likelihood.exact_scores(logits), likelihood.exact_scores(logits.double()), strict=True)
    for score, expected in exact:
        assert score.dtype == dtype
        torch.testing.assert_close(
            score.double(), expected, atol=torch.finfo(dtype).eps / 4, rtol=0
        )  # half a last digit of what is below one


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in LIKELIHOODS
        for value in (math.nan, math.inf)
        if (name, value) != ("bernoulli", math.inf)
    ],
)
def test_logits_that_are_not_finite_give_a_score_that_is_not(name: str, value: float) -> None:
    likelihood, logits = LIKELIHOODS[name], LOGITS.clone()
    logits[1, 1] = value
    score = likelihood.score(logits, likelihood.sample(logits, generator()))
    assert score[0].isfinite().all()
    assert not score[1].isfinite().all()


# -- The Fisher trace --------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(samples=st.integers(1, 6), features=st.integers(1, 5), classes=st.integers(2, 6), scale=st.floats(0, 5))
def test_trace_equals_closed_form_for_softmax_regression(
    samples: int, features: int, classes: int, scale: float
) -> None:
    """Tr F = mean of (|x|^2 + 1) (1 - sum_c p_c^2), with a bias."""
    torch.manual_seed(0)
    module, x = nn.Linear(features, classes).double(), scale * floats(samples, features)
    found = trace(module, x, Categorical().exact_scores).sum(0)
    p = module(x).softmax(1)
    torch.testing.assert_close(found, ((x.square().sum(1) + 1) * (1 - p.square().sum(1))).detach())


@settings(max_examples=50)
@given(logits=st.lists(st.sampled_from([-math.inf, -1e4, -20.0, -1.0, 0.0, 0.5, 30.0, 1e4]), min_size=1, max_size=6))
def test_exact_scores_have_the_covariance_of_the_score_over_labels_as_their_sum(logits: list[float]) -> None:
    """Whatever classes are impossible, as long as one is possible; in one vector less than there are classes."""
    row = torch.tensor([logits], dtype=torch.float64)
    assume(row.max() > -math.inf)
    vectors = torch.cat([*Categorical().exact_scores(row)])
    assert len(vectors) == max(1, len(logits) - 1)
    p = row.softmax(1)
    torch.testing.assert_close(vectors.T @ vectors, p.diagflat() - p.T @ p, atol=1e-12, rtol=1e-12)


def test_trace_equals_closed_form_for_logistic_and_linear_regression() -> None:
    module, x = nn.Linear(4, 3).double(), floats(6, 4)
    inputs = x.square().sum(1) + 1
    s = module(x).sigmoid().detach()
    torch.testing.assert_close(trace(module, x, Bernoulli().exact_scores).sum(0), inputs * (s * (1 - s)).sum(1))
    torch.testing.assert_close(trace(module, x, Gaussian().exact_scores).sum(0), 3 * inputs)


def relu_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def test_trace_equals_the_hessians_for_a_piecewise_linear_network() -> None:
    """The Hessian of the mean cross-entropy is the Fisher matrix there, whatever the targets."""
    module, x = relu_net(), floats(8, 4)
    targets = torch.arange(8) % 3

    def loss(params: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(module, params, (x,)), targets)

    params = {name: p.detach() for name, p in module.named_parameters()}
    hessian = torch.func.hessian(loss)(params)
    expected = sum(
        torch.trace(hessian[name][name].reshape(p.numel(), p.numel())) for name, p in module.named_parameters()
    )
    torch.testing.assert_close(trace(module, x, Categorical().exact_scores).sum(0).mean(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sampled_trace_is_within_four_standard_errors_of_the_exact_one(name: str) -> None:
    module, x, likelihood, draws = relu_net(), floats(8, 4), LIKELIHOODS[name], 400
    exact = trace(module, x, likelihood.exact_scores).sum(0)

    def sampled(logits: Tensor) -> Iterable[Tensor]:
        source = generator()
        return [likelihood.score(logits, likelihood.sample(logits, source)) for _ in range(draws)]

    norms = trace(module, x, sampled)
    assert ((norms.mean(0) - exact).abs() < 4 * norms.std(0) / math.sqrt(draws)).all()


def test_squared_norm_of_the_mean_gradient_times_samples_has_the_trace_as_its_mean() -> None:
    """B E|g|^2 = Tr F for labels from the model, whose scores have mean zero."""
    module, x, likelihood, draws = relu_net(), floats(8, 4), Categorical(), 400
    exact = trace(module, x, likelihood.exact_scores).sum(0).mean()
    logits, source = module(x), generator()
    values = []
    for _ in range(draws):
        score = likelihood.score(logits.detach(), likelihood.sample(logits.detach(), source))
        grads = torch.autograd.grad(logits, [*module.parameters()], score / len(x), retain_graph=True)
        values.append(len(x) * torch.stack([grad.square().sum() for grad in grads]).sum())
    found = torch.stack(values)
    assert (found.mean() - exact).abs() < 4 * found.std() / math.sqrt(draws)


def test_a_sequence_is_one_sample_whose_ignored_positions_do_not_count() -> None:
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5)).double()
    x = torch.randint(7, (4, 6), generator=generator())
    targets = torch.randint(5, (4, 6), generator=generator(1))
    targets[0, 2:], targets[1, :3], targets[3] = -100, -100, -100
    likelihood = Categorical()
    labels = likelihood.sample(module(x).detach(), generator(2), targets)
    assert torch.equal(labels == -100, targets == -100)
    found = trace(module, x, lambda logits: [likelihood.score(logits, labels)])[0]
    for sample in range(4):
        loss = F.cross_entropy(module(x[sample]), labels[sample], reduction="sum", ignore_index=-100)
        grads = torch.autograd.grad(loss, [*module.parameters()])
        torch.testing.assert_close(found[sample], sum(grad.square().sum() for grad in grads))
    assert found[3] == 0


def test_an_ignored_sample_has_exact_trace_zero() -> None:
    module, x = nn.Linear(4, 3).double(), floats(2, 4)
    found = trace(module, x, lambda logits: Categorical().exact_scores(logits, torch.tensor([1, -100]))).sum(0)
    assert found[0] > 0
    assert found[1] == 0


def test_exact_scores_of_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r'one position per sample.* have 4: set labels="sampled"'):
        next(iter(Categorical().exact_scores(torch.zeros(2, 4, 3))))


@pytest.mark.parametrize("class_dim", [-1, 1])
def test_classes_may_be_in_either_dim(class_dim: int) -> None:
    logits, targets = floats(4, 3, 5), torch.randint(5, (4, 3), generator=generator())
    targets[0, 0] = -100
    moved = logits.movedim(-1, class_dim)
    one, other = Categorical(), Categorical(class_dim)
    torch.testing.assert_close(other.score(moved, targets).movedim(class_dim, -1), one.score(logits, targets))
    assert torch.equal(other.sample(moved, generator(), targets), one.sample(logits, generator(), targets))
    torch.testing.assert_close(other.nll(moved, targets), one.nll(logits, targets))
    assert other.accuracy_counts(moved, targets) == one.accuracy_counts(logits, targets)


def test_mean_loss_and_accuracy_leave_ignored_positions_out() -> None:
    logits, targets = floats(4, 6, 5), torch.randint(5, (4, 6), generator=generator())
    targets[:, 4:] = -100
    total, count = Categorical().nll(logits, targets)
    assert int(count) == 16
    torch.testing.assert_close(total / count, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    correct, counted = Categorical().accuracy_counts(logits, targets)
    assert (int(correct), int(counted)) == (int((logits.argmax(-1) == targets).sum()), 16)


def test_sums_and_counts_stack_for_reduction_over_processes() -> None:
    for name, targets in (("categorical", torch.tensor([2, 0])), ("bernoulli", LOGITS > 0), ("gaussian", LOGITS)):
        assert torch.stack(LIKELIHOODS[name].nll(LOGITS.float(), targets)).dtype == torch.float32


# -- Which likelihood --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "targets", "class_dim"),
    [((8, 10), (8,), -1), ((8, 5, 10), (8, 5), -1), ((8, 10, 4, 4), (8, 4, 4), 1), ((8, 10, 4), (8, 4), 1),
     ((8, 4, 4), (8, 4), -1)],
)  # fmt: skip
def test_integer_targets_with_class_logits_are_categorical(
    logits: tuple[int, ...], targets: tuple[int, ...], class_dim: int
) -> None:
    found = infer_likelihood("auto", torch.randn(logits), torch.zeros(targets, dtype=torch.long))
    assert found == Categorical(class_dim)
    assert infer_likelihood("categorical", torch.randn(logits), torch.zeros(targets, dtype=torch.int32)) == found


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (torch.randn(8, 1), torch.zeros(8, dtype=torch.long)),  # one logit a target: a yes or no, most likely
        (torch.randn(8), torch.zeros(8, dtype=torch.long)),
        (torch.randn(8, 3), torch.zeros(8, 3, dtype=torch.long)),
        (torch.randn(8, 3), torch.zeros(8)),
        (torch.randn(8, 3), torch.zeros(8, dtype=torch.bool)),
        (torch.randn(8, 3), torch.zeros(7, dtype=torch.long)),
        (torch.randn(8, 3), None),
    ],
)
def test_anything_else_must_be_named(logits: Tensor, targets: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"(?s)found outputs \(8.* of float32 and .*target.*: set likelihood="):
        infer_likelihood("auto", logits, targets)


def test_a_named_likelihood_is_taken_on_trust_without_targets() -> None:
    assert infer_likelihood("categorical", torch.randn(8, 3)) == Categorical()
    assert infer_likelihood("categorical", torch.randn(8, 4, 3)) == Categorical()
    assert infer_likelihood("bernoulli", torch.randn(8, 3)) == Bernoulli()
    assert infer_likelihood("gaussian", torch.randn(8, 3), torch.zeros(8, 3)) == Gaussian()
    with pytest.raises(ValueError, match="set predict_fn="):
        infer_likelihood("categorical", torch.randn(8, 3, 4, 4))


def test_class_probabilities_as_targets_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"integer class indices.*\(8, 3\) of float32.*set predict_fn="):
        infer_likelihood("categorical", torch.randn(8, 3), torch.rand(8, 3))


@pytest.mark.parametrize("class_dim", [-1, 1])
def test_probabilities_instead_of_logits_are_refused(class_dim: int) -> None:
    logits = torch.randn(8, 5, 10).movedim(-1, class_dim)
    targets = torch.zeros(8, 5, dtype=torch.long)
    for name in ("auto", "categorical"):
        with pytest.raises(ValueError, match=r"probabilities.*predict_fn="):
            infer_likelihood(name, logits.softmax(class_dim), targets)
    with pytest.raises(ValueError, match="probabilities"):
        infer_likelihood("auto", logits.half().softmax(class_dim), targets)
    assert infer_likelihood("auto", logits.log_softmax(class_dim), targets) == Categorical(class_dim)


def test_zeros_and_single_classes_are_not_taken_for_probabilities() -> None:
    targets = torch.zeros(8, dtype=torch.long)
    assert infer_likelihood("auto", torch.zeros(8, 3), targets) == Categorical()
    assert infer_likelihood("categorical", torch.ones(8, 1), targets) == Categorical()
    assert infer_likelihood("auto", torch.full((8, 3), math.nan), targets) == Categorical()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="one of 'auto', 'categorical', 'bernoulli', 'gaussian', got 'poisson'"):
        infer_likelihood("poisson", LOGITS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bernoulli", "gaussian"])
def test_targets_without_the_last_dim_are_not_broadcast(name: str) -> None:
    """`(samples, 1)` and `(samples,)` mean the same; subtracted, they would compare all with all."""
    outputs, targets = floats(4, 1), torch.tensor([0.0, 1.0, 1.0, 0.0])
    likelihood = infer_likelihood(name, outputs, targets)  # type: ignore[arg-type]
    torch.testing.assert_close(likelihood.nll(outputs, targets), likelihood.nll(outputs, targets.unsqueeze(1)))
    assert likelihood.score(outputs, targets).shape == (4, 1)
    with pytest.raises(ValueError, match=r"one label for each output.*\(4, 2\).*\(4, 1\).*predict_fn="):
        infer_likelihood(name, outputs, torch.zeros(4, 2))  # type: ignore[arg-type]


def test_outputs_that_are_no_real_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="real numbers"):
        infer_likelihood("gaussian", torch.zeros(3, dtype=torch.long))


def test_exact_and_sampled_scores_work_with_a_plan() -> None:
    module, x = relu_net(), floats(8, 4)
    plan = choose_methods(module, lambda: module(x))
    norms = per_sample_squared_grad_norms(module, lambda: module(x), Categorical().exact_scores, plan)
    torch.testing.assert_close(torch.stack([*norms.values()]).sum(0), trace(module, x, Categorical().exact_scores))


# -- Targets as they come ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_targets_of_any_integer_dtype_count_alike(dtype: torch.dtype, ignored: int) -> None:
    likelihood, targets = Categorical(ignore_index=ignored), torch.tensor([2, 1])

    def all_of(labels: Tensor) -> list[Tensor]:
        return [
            *likelihood.nll(LOGITS, labels),
            *likelihood.accuracy_counts(LOGITS, labels),
            likelihood.score(LOGITS, labels),
            likelihood.sample(LOGITS, generator(), labels),
            *likelihood.exact_scores(LOGITS, labels),
        ]

    torch.testing.assert_close(all_of(targets.to(dtype)), all_of(targets), rtol=0, atol=0)


def test_a_uint8_label_of_156_is_a_class_and_not_the_minus_100_that_it_wraps_to() -> None:
    logits, targets = torch.zeros(1, 200), torch.tensor([156], dtype=torch.uint8)
    assert Categorical().nll(logits, targets)[1] == 1
    assert Categorical().score(logits, targets)[0, 156] > 0


@pytest.mark.parametrize("label", [3, -1, 255])
def test_a_label_that_is_no_class_makes_the_result_not_finite(label: int) -> None:
    """Where an index out of range would end the process on a GPU, and be an error in the middle of training."""
    targets = torch.tensor([2, label])
    assert Categorical().nll(LOGITS, targets)[0].isnan()
    assert Categorical().score(LOGITS, targets).isnan().any(1).tolist() == [False, True]
    assert Categorical(ignore_index=label).nll(LOGITS, targets)[0].isfinite()
