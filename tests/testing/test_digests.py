"""A digest tells two states apart by their content, whatever kind of tensor holds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_probes.testing.digests import digest

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda values: values,
    "transposed": lambda values: values.t(),
    "sparse, by coordinates": lambda values: values.to_sparse(),
    "sparse, by rows": lambda values: values.to_sparse(layout=torch.sparse_csr),
    "of MKL-DNN": lambda values: values.to_mkldnn(),
    "nested": lambda values: torch.nested.nested_tensor([values, values[:1]]),
    "jagged": lambda values: torch.nested.nested_tensor([values, values[:1]], layout=torch.jagged),
    "in half precision": lambda values: values.bfloat16(),
    "complex": lambda values: values.to(torch.complex64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:The PyTorch API of nested tensors")
def test_digest_depends_on_the_content_of_any_tensor(kind: str) -> None:
    values = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    changed = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    first, again, other = (digest({"a": KINDS[kind](each.clone())}) for each in (values, values, changed))
    assert first == again != other
