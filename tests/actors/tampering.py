"""A worker extension that can change a layer behind the engine's back."""

from typing import Any

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
