"""The weight-transfer engine inside a vLLM worker: vLLM's native interface, with a staged receive behind it.

vLLM's four phases, and what they do here:

    init_weight_transfer_engine   join an epoch
    start_weight_update           nothing is touched yet
    update_weights                start to receive into staging buffers, in a thread; returns at once
    finish_weight_update          swap the staged weights into the model: the only part that generation must stand still for

Between the last two, `headrace_staging` (the worker extension) says how far the receive is. vLLM finds the engine through
`worker_extension_cls`, whose import registers it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS
from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

from headrace.actors.weight_sync.receiver import StagedReceiver
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.verifiers.records import WeightManifest

BACKEND = "headrace"
NAMED_LAYERS = 3  # of those that lack weights, in an error's line


@dataclass
class InitInfo(WeightTransferInitInfo):
    """`address` is a GroupAddress as builtins; `rank_offset` is the rank of this engine's first worker."""

    address: dict[str, Any]
    rank_offset: int
    local_host: str


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """`manifest` is a WeightManifest as builtins."""

    manifest: dict[str, Any]


class HeadraceWeightTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    defers_processing = True
    supports_draft_weight_update = False

    receiver: StagedReceiver | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        if self.receiver is None:
            self.receiver = StagedReceiver(self.device, init_info.local_host)
        self.receiver.abort()
        address = msgspec.convert(init_info.address, GroupAddress)
        self.receiver.join(address, init_info.rank_offset + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        """Nothing: the model stays as it is until the swap."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronizes the device here, which would wait for the model's own work.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self._joined().receive(msgspec.convert(update_info.manifest, WeightManifest))

    def finish_weight_update(self) -> None:
        """Swap. Raises IncompleteSwap when a layer of the model did not get all of its weights."""
        _, layout, buckets = self._joined().take()
        with torch.device(self.device):
            swap_weights(self.model, self.model_config, layout.views(buckets))

    def shutdown(self) -> None:
        if self.receiver is not None:
            self.receiver.abort()

    def _joined(self) -> StagedReceiver:
        if self.receiver is None:
            raise RuntimeError("this worker has joined no weight-sync group: call init_weight_transfer_engine first")
        return self.receiver


class IncompleteSwap(RuntimeError):
    """The model is a mixture of two versions, or still the one before: it may serve no more."""


def swap_weights(model: nn.Module, config: ModelConfig, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Load a whole set of weights, by Hugging Face name, into a model in use.

    vLLM gives a layer that nothing was loaded into its old weights back, and fills up one that got a part of them from
    uninitialised memory; it says so in its log at most. So what was loaded is counted here.

    Raises:
        IncompleteSwap: a layer did not get all of its weights.
    """
    tied = tied_layers(model)
    initialize_layerwise_reload(model)
    cast(Any, model).load_weights(weights)
    lacking = list(lacking_layers(model, tied))
    finalize_layerwise_reload(model, config)
    for layer in tied:
        # A head packed for the CPU is a copy of its embedding, which the reload does not renew.
        if isinstance(method := getattr(layer, "quant_method", None), UnquantizedEmbeddingMethod):
            method.process_weights_after_loading(layer)
    if lacking:
        more = f" and {len(lacking) - NAMED_LAYERS} more" if len(lacking) > NAMED_LAYERS else ""
        raise IncompleteSwap(f"the swap left weights out: {', '.join(lacking[:NAMED_LAYERS])}{more}")


def tied_layers(model: nn.Module) -> set[nn.Module]:
    """Layers whose parameters are all those of a layer before them: they have none of their own to load."""
    seen: set[nn.Parameter] = set()
    tied: set[nn.Module] = set()
    for layer in model.modules():
        own = list(layer.parameters(recurse=False))
        if own and seen.issuperset(own):
            tied.add(layer)
        seen.update(own)
    return tied


def lacking_layers(model: nn.Module, tied: set[nn.Module]) -> Iterator[str]:
    """Between loading and the end of the reload: the layers that did not get as many values as their parameters hold.

    A layer with all of its values has been processed and can load no more. What an attention layer holds of its own are
    scales of its cache, which no checkpoint needs to have.
    """
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or layer in tied or is_deferred_attention_layer(layer):
            continue
        parameters = [tensor for key, tensor in layer.named_parameters(recurse=False) if key not in SKIP_LOAD_TENSORS]
        needed = sum(get_tensor_load_numel(parameter) for parameter in parameters)
        if isinstance(layer, VocabParallelEmbedding):  # its rows are padded
            needed = needed * layer.shard_indices.num_org_elements // layer.num_embeddings_per_partition
        if info.load_numel < needed:
            yield f"{name} got {info.load_numel} of {needed} values"


class WorkerExtension:
    """Mixed into vLLM's worker class: what the native interface has no call for. Called by `collective_rpc`."""

    weight_transfer_engine: HeadraceWeightTransferEngine
    _weight_update_active: bool

    def headrace_staging(self) -> dict[str, Any]:
        """The StagingStatus of this worker, as builtins."""
        return msgspec.to_builtins(self.weight_transfer_engine._joined().status())

    def headrace_abort_update(self) -> None:
        """Give up the update under way, whatever its phase before the swap; the weights in use stay."""
        self.weight_transfer_engine.shutdown()
        self._weight_update_active = False


def register() -> None:
    """Make the backend known to vLLM in this process, once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, HeadraceWeightTransferEngine)


register()
