"""A worker extension that can change a layer behind the engine's back, or make its next swap leave weights out."""

import re
from collections.abc import Iterable
from typing import Any

import torch

from headrace.actors.weight_sync.vllm_backend import WorkerExtension


class TamperingExtension(WorkerExtension):
    model_runner: Any

    def scale_layer(self, index: int, factor: float) -> int:
        """Multiply what can be changed in place of one decoder layer: on the CPU engine its norms, since the packed linear
        layers' parameters are empty. Returns the number of elements changed."""
        changed = 0
        for name, parameter in self.model_runner.model.named_parameters():
            if f"layers.{index}." in name and parameter.numel():
                parameter.data.mul_(factor)
                changed += parameter.numel()
        return changed

    def leave_out(self, pattern: str) -> None:
        """From the next swap, and from no other, the tensors whose Hugging Face name matches."""
        model = self.model_runner.model
        load = model.load_weights

        def load_the_others(weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
            model.load_weights = load
            return load((name, tensor) for name, tensor in weights if not re.search(pattern, name))

        model.load_weights = load_the_others
