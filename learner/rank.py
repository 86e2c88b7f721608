"""One rank of the learner: a policy sharded with FSDP2, and one optimizer step at a time. No Ray here.

A step reads in the order in which it happens: pack the groups, agree with the other ranks on the number of passes and of
tokens, forward and backward a pack at a time, clip, step. All public methods but `close` are collective: every rank calls
them, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from headrace.learner import checkpoint
from headrace.learner.losses import LOSSES, LossInputs, LossOptions, LossSums
from headrace.learner.optimizer import build_optimizer, scheduled_rate, set_learning_rate
from headrace.learner.packing import Branch, Document, Pack, documents_of, pack_documents
from headrace.learner.policy import Policy, load_policy
from headrace.learner.rounding import dithers_what_is_sent
from headrace.learner.settings import LearnerSettings
from headrace.learner.supervised import SupervisedExample, cross_entropy, example_documents
from headrace.verifiers.records import LEARNER_PHASES, Group

COLLECTIVE_SECONDS = 600.0  # for each collective: a rank that waits longer ends with an error


class StepMetrics(msgspec.Struct, frozen=True):
    """One optimizer step. All values but the last two are those of the whole batch, the same on every rank.

    What `StepRecord` (cluster/run_records.py) has under the same name is taken into a run's `metrics.jsonl`.
    """

    step: int
    loss: float  # nats a trained token: the sum over all ranks, divided by trained_tokens
    grad_norm: float  # before clipping; 0 where no group had a gradient
    learning_rate: float
    kl: float  # against the reference policy, nats a token; 0 where none is loaded
    mismatch_kl: float  # between generator and learner, of the same tokens, nats a token
    clip_share: float
    tis_truncated_share: float
    effective_sample_share: float  # (sum of weights)^2 / (tokens * sum of squared weights), in (0, 1]
    entropy: float  # nats a token
    trained_tokens: int  # response tokens that the loss is a mean over; the others are over those with a gradient
    groups_without_gradient: int  # these did not go through the model
    learner_tokens: int  # tokens that went through the forward pass
    rank_tokens: int  # this rank's share of learner_tokens
    phases: dict[str, float]  # this rank's seconds: pack, forward, backward, optimizer


class LearnerRank:
    """Rank `rank` of `world_size`. Use: construct, `setup`, then any of the collective methods, `close`."""

    policy: Policy
    optimizer: AdamW

    def __init__(self, settings: LearnerSettings, rank: int, world_size: int) -> None:
        self.settings = settings
        self.rank = rank
        self.world_size = world_size
        self.step = 0  # optimizer steps behind the weights
        self.device = torch.device(settings.device)
        self.reference: Policy | None = None
        self._warm_optimizer: AdamW | None = None

    def setup(self, store_host: str, store_port: int) -> None:
        """Join the other ranks (rank 0 listens on `store_port` of `store_host`), load the policy and shard it.

        Raises:
            UserError: the model cannot be loaded or trained here.
            torch.distributed.DistStoreError: not all ranks came within COLLECTIVE_SECONDS.
        """
        settings = self.settings
        compute_dtype = settings.compute_dtype
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
            init_method=f"tcp://{store_host}:{store_port}",
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        )
        mesh = init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("shard",))
        torch.manual_seed(settings.seed)
        self.policy = self._load(mesh, compute_dtype)
        self.optimizer = build_optimizer(
            self.policy.parameters(),
            learning_rate=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        if settings.loss.kl_coef > 0:
            self.reference = self._load(mesh, compute_dtype).requires_grad_(False)

    def train_step(self, groups: list[Group], step: int) -> StepMetrics:
        """One optimizer step, which makes weight version `step` (counted from 1), on all ranks' groups together.

        Ranks may have different numbers of groups, or none. Where no rank has a group with a gradient, the weights and the
        optimizer's state stay as they are.
        """
        phases: dict[str, float] = dict.fromkeys(LEARNER_PHASES, 0.0)
        settings = self.settings
        with self._phase(phases, "pack"):
            batch = documents_of(
                groups,
                normalize=settings.normalize_advantages,
                keep_flat=settings.flat_groups_cost,
                trained_samples=settings.trained_samples,
            )
            packs = pack_documents(batch.documents, settings.max_tokens_per_pack)
            passes, trained_tokens = self._agree(len(packs), batch.trained_tokens)

        sums = LossSums.zero(self.device)
        for index, pack in enumerate(self._padded(packs, passes)):
            self._prepare_pass(last=index == passes - 1)
            pack = pack.to(self.device)
            with self._phase(phases, "forward"):
                reference = None if self.reference is None else self.reference.logprobs(pack)
                token_loss = PackLoss(pack, reference, settings.loss)
                loss = self.policy(pack, token_loss)
                if index < len(packs):
                    sums = sums + token_loss.sums
                else:
                    loss = loss * 0.0
            with self._phase(phases, "backward"):
                # FSDP averages the ranks' gradients; the loss is a mean over the tokens of all of them.
                (loss * (self.world_size / trained_tokens)).backward()

        with self._phase(phases, "optimizer"):
            learning_rate = scheduled_rate(
                step,
                learning_rate=settings.learning_rate,
                schedule=settings.schedule,
                warmup_steps=settings.warmup_steps,
                total_steps=settings.total_steps,
            )
            grad_norm = self._optimizer_step(self.optimizer, learning_rate) if passes else 0.0
        self.step = step
        skipped = len(groups) - len(batch.documents)
        return self._metrics(sums, packs, skipped, grad_norm, learning_rate, trained_tokens, phases)

    def supervised_step(self, examples: list[SupervisedExample], learning_rate: float) -> float:
        """One step of cross-entropy on all ranks' examples together; the loss before it, in nats a completion token.

        The warm start has an AdamW of its own, made at its first step and dropped by `finish_supervised`: the moments of
        another objective are no start for reinforcement learning.
        """
        if self._warm_optimizer is None:
            self._warm_optimizer = build_optimizer(
                self.policy.parameters(), learning_rate=learning_rate, betas=(0.9, 0.99), weight_decay=0.0
            )
        packs = pack_documents(example_documents(examples), self.settings.max_tokens_per_pack)
        own_tokens = sum(len(pack.targets) for pack in packs)
        passes, tokens = self._agree(len(packs), own_tokens)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for index, pack in enumerate(self._padded(packs, passes)):
            self._prepare_pass(last=index == passes - 1)
            loss = self.policy(pack.to(self.device), cross_entropy)
            if index >= len(packs):
                loss = loss * 0.0
            total += loss.detach()
            (loss * (self.world_size / tokens)).backward()
        if not passes:
            return 0.0
        self._optimizer_step(self._warm_optimizer, learning_rate)
        dist.all_reduce(total)
        return float(total) / tokens

    def finish_supervised(self) -> None:
        """Forget the warm start's optimizer; its weights stay, and become the reference policy where there is one."""
        self._warm_optimizer = None
        if self.reference is not None:
            release_gathered(self.reference)
            with torch.no_grad():
                for reference, trained in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                    reference.copy_(trained)

    def probe(self, sequences: list[list[int]]) -> list[list[float]]:
        """Log-probabilities at temperature 1: `result[i][t]` is that of token t + 1 of `sequences[i]`, on every rank.

        Raises:
            ValueError: a sequence has fewer than two tokens.
        """
        documents = [
            Document(sequence[:1], [Branch(sequence[1:], [0.0] * (len(sequence) - 1), 0.0)]) for sequence in sequences
        ]
        values: list[float] = []
        for pack in pack_documents(documents, self.settings.max_tokens_per_pack):
            values.extend(self.policy.logprobs(pack.to(self.device)).tolist())
        release_gathered(self.policy)
        remaining = iter(values)
        return [[next(remaining) for _ in sequence[1:]] for sequence in sequences]

    def named_full_tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """`Policy.served_tensors`, rounded as the settings say."""
        settings = self.settings
        serving = str(dtype).removeprefix("torch.")
        dithered = dithers_what_is_sent(settings.dithered_rounding, settings.dtype, serving)
        return self.policy.served_tensors(dtype, dithered=dithered)

    def save(self, folder: Path) -> None:
        """Write weights, optimizer, reference policy, random state and step; any world size can `load` it."""
        checkpoint.save(folder, self.policy, self.optimizer, self.reference, step=self.step, rank=self.rank)

    def load(self, folder: Path) -> int:
        """Continue from `save`: the step that the checkpoint was written after.

        Raises:
            UserError: there is no complete checkpoint in the folder, or it is another model's.
        """
        if self.reference is not None:
            release_gathered(self.reference)
        self.step = checkpoint.load(
            folder, self.policy, self.optimizer, self.reference, rank=self.rank, seed=self.settings.seed
        )
        return self.step

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder in the serving dtype: weights (safetensors), configuration, tokenizer files."""
        settings = self.settings
        tensors = self.named_full_tensors(settings.served_dtype)
        checkpoint.export(folder, tensors, base=settings.model, dtype=settings.serving_dtype, rank=self.rank)
        dist.barrier()

    def close(self) -> None:
        """Leave the process group; not collective, so that it also works when another rank is gone."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _load(self, mesh: DeviceMesh, dtype: torch.dtype) -> Policy:
        """A sharded policy; the gathered weights and the computation are in `dtype`, shards and reductions in float32."""
        settings = self.settings
        policy = load_policy(
            settings.model,
            head_chunk_tokens=settings.head_chunk_tokens,
            activation_checkpointing=settings.activation_checkpointing,
        )
        if settings.dithered_rounding and dtype == torch.bfloat16:
            policy.move_off_grid()
        precision = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32
        )
        reshard = not settings.gathers_once
        for layer in policy.decoder_layers():
            fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=reshard)
        # The root's weights (embedding, head) are needed at once by the backward pass: gathering them twice saves nothing.
        fully_shard(policy, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
        return policy.to(self.device).train()

    def _agree(self, passes: int, tokens: int) -> tuple[int, int]:
        """The largest number of passes and the sum of tokens over the ranks."""
        most = torch.tensor(passes, device=self.device)
        total = torch.tensor(tokens, device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        dist.all_reduce(total)
        return int(most), int(total)

    def _padded(self, packs: list[Pack], passes: int) -> Iterator[Pack]:
        """The packs, and a dummy for each pass that only other ranks need: FSDP's collectives are counted."""
        yield from packs
        for _ in range(passes - len(packs)):
            yield dummy_pack()

    def _prepare_pass(self, *, last: bool) -> None:
        if self.settings.gathers_once and isinstance(self.policy, FSDPModule):
            self.policy.set_requires_gradient_sync(last)
            self.policy.set_reshard_after_backward(last)

    def _optimizer_step(self, optimizer: AdamW, learning_rate: float) -> float:
        """Clip the gradients, step, forget them; the norm of the whole gradient before clipping.

        Raises:
            FloatingPointError: on all ranks, since the norm is everybody's: it is not finite. Nothing is changed.
        """
        set_learning_rate(optimizer, learning_rate)
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not bool(torch.isfinite(norm)):
            optimizer.zero_grad()
            raise FloatingPointError(
                f"the gradient of step {self.step + 1} is not finite (norm {float(norm)}): the weights stay as they are"
            )
        clip_grads_with_norm_(self.policy.parameters(), self.settings.grad_clip, norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    def _metrics(
        self,
        sums: LossSums,
        packs: list[Pack],
        skipped_groups: int,
        grad_norm: float,
        learning_rate: float,
        trained_tokens: int,
        phases: dict[str, float],
    ) -> StepMetrics:
        rank_tokens = sum(len(pack.token_ids) for pack in packs)
        counts = sums.tokens.new_tensor([rank_tokens, skipped_groups])
        vector = torch.cat([sums.as_vector(), counts])
        dist.all_reduce(vector)
        total = LossSums.from_vector(vector[: -len(counts)].cpu())
        learner_tokens, without_gradient = vector[-len(counts) :].tolist()
        tokens = max(float(total.tokens), 1.0)
        squares = float(total.weights_squared)
        return StepMetrics(
            step=self.step,
            loss=float(total.loss) / max(trained_tokens, 1),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            kl=float(total.kl) / tokens,
            mismatch_kl=float(total.mismatch_kl) / tokens,
            clip_share=float(total.clipped) / tokens,
            tis_truncated_share=float(total.tis_truncated) / tokens,
            effective_sample_share=float(total.weights) ** 2 / (tokens * squares) if squares else 1.0,
            entropy=float(total.entropy) / tokens,
            trained_tokens=trained_tokens,
            groups_without_gradient=int(without_gradient),
            learner_tokens=int(learner_tokens),
            rank_tokens=rank_tokens,
            phases=phases,
        )

    @contextmanager
    def _phase(self, phases: dict[str, float], name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        phases[name] += time.perf_counter() - start


class PackLoss:
    """The chosen loss over one pack as a `TokenLoss`; `sums` holds the metrics of the chunks so far."""

    def __init__(
        self, pack: Pack, reference_logprobs: Float[Tensor, " responses"] | None, options: LossOptions
    ) -> None:
        self.pack = pack
        self.reference_logprobs = reference_logprobs
        self.options = options
        self.loss = LOSSES[options.name]
        self.sums = LossSums.zero(pack.targets.device)

    def __call__(
        self, logprobs: Float[Tensor, " chunk"], entropies: Float[Tensor, " chunk"], rows: slice
    ) -> Float[Tensor, ""]:
        inputs = LossInputs(
            new_logprobs=logprobs,
            old_logprobs=self.pack.old_logprobs[rows],
            advantages=self.pack.advantages[rows],
            entropies=entropies,
            reference_logprobs=None if self.reference_logprobs is None else self.reference_logprobs[rows],
        )
        loss, sums = self.loss(inputs, self.options)
        self.sums = self.sums + sums
        return loss


def dummy_pack() -> Pack:
    """The smallest pack there is; its loss is multiplied by zero."""
    (pack,) = pack_documents([Document([0], [Branch([0], [0.0], 0.0)])], max_tokens=1)
    return pack


def fsdp_modules(policy: Policy) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


def release_gathered(policy: Policy) -> None:
    """Go back to shards: after a pass without a backward, FSDP would keep weights that the next step makes stale."""
    for module in fsdp_modules(policy):
        module.reshard()
