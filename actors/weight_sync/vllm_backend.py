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

from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from headrace.actors.weight_sync.receiver import StagedReceiver
from headrace.actors.weight_sync.transport import GroupAddress
from headrace.verifiers.records import WeightManifest

BACKEND = "headrace"


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
        _, layout, buckets = self._joined().take()
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)
            cast(Any, self.model).load_weights(layout.views(buckets))
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        if self.receiver is not None:
            self.receiver.abort()

    def _joined(self) -> StagedReceiver:
        if self.receiver is None:
            raise RuntimeError("this worker has joined no weight-sync group: call init_weight_transfer_engine first")
        return self.receiver


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
