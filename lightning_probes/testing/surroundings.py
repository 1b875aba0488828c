"""The state of the process that a measurement may change, but must restore."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import torch
from torch.backends import cudnn


def generators() -> dict[str, Any]:
    """The states of all global random generators."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def settings() -> dict[str, Any]:
    """The process-wide settings that a measurement may change."""
    cuda: Any = torch.backends.cuda  # whose functions have no types
    return {
        "sdpa": [
            cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ],
        "cudnn": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        "matmul": [torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32],
        "default": [torch.get_default_dtype(), torch.get_default_device()],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "anomaly": [torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()],
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        ],
        "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), _autocast_depth()],
        "printing": vars(torch._tensor_str.PRINT_OPTS),
        "compiler": torch._dynamo.eval_frame._stance.stance if "torch._dynamo" in sys.modules else "default",
        "global hooks": {
            name: len(value) for name, value in vars(torch.nn.modules.module).items() if name.endswith("_hooks")
        },
    }  # fmt: skip


def _autocast_depth() -> int:
    """The number of open autocast blocks. While one is open, cached casts of weights are reused."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth
