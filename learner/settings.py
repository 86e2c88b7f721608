"""What one rank needs to know: the learner's share of the job file, as plain values."""

from __future__ import annotations

from typing import Literal

import msgspec
import torch

from headrace.learner.losses import LossOptions
from headrace.verifiers.errors import WrongValue

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LearnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Values of one learner rank; names and defaults are those of the job file's `[algorithm]` and `[learner]`."""

    model: str  # a Hugging Face folder, or a hub id
    total_steps: int  # the schedule's length
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"

    normalize_advantages: bool = True
    trained_samples: int | None = None
    loss: LossOptions = LossOptions()

    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0

    dtype: str = "float32"  # of the computation; the trained weights and the optimizer's moments are float32 always
    serving_dtype: str = "bfloat16"  # of the weights that are sent and exported
    dithered_rounding: bool = True  # of the weights that are sent and exported: learner/rounding.py
    max_tokens_per_pack: int = 2048
    head_chunk_tokens: int = 1024
    activation_checkpointing: bool = False
    threads: int | None = None  # torch threads on a CPU; None: as the process has them (`worker.py` sets its share)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Raises WrongValue for a dtype that gradients would underflow in."""
        if self.dtype not in ("float32", "bfloat16"):
            raise WrongValue("learner.dtype", f"{self.dtype!r} cannot be trained in: give float32 or bfloat16")
        return DTYPES[self.dtype]

    @property
    def served_dtype(self) -> torch.dtype:
        """Raises WrongValue for an unknown one."""
        return torch_dtype(self.serving_dtype, "rollout.dtype")

    @property
    def flat_groups_cost(self) -> bool:
        """Whether groups whose advantages are all zero go through the model: a KL term gives them a gradient."""
        return self.loss.kl_coef > 0

    @property
    def gathers_once(self) -> bool:
        """Whether the gathered weights and the unreduced gradients of a step are kept until it ends, so that its packs cost
        one gather and one reduction together: faster, for a full copy of both in memory, which a GPU has no room for."""
        return self.device == "cpu"


def torch_dtype(name: str, key: str) -> torch.dtype:
    """The torch dtype that the job file's `key` names. Raises WrongValue for an unknown one."""
    if name not in DTYPES:
        raise WrongValue(key, f"unknown dtype {name!r}: give one of {', '.join(DTYPES)}")
    return DTYPES[name]
