"""A Hugging Face causal language model as the policy: packs in, token log-probabilities or a token loss out.

The log-probabilities are those of the distribution that was sampled from as far as temperature goes. What top_p and top_k
cut away is not undone: a generator that samples with them reports log-probabilities of the renormalised rest, and the
importance weights are off by that factor.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from headrace.learner.attention import IMPLEMENTATION
from headrace.learner.head import HeadWeights, TokenLoss, token_logprobs, token_loss
from headrace.learner.matmul import use_onednn
from headrace.learner.packing import Branch, Document, Pack, pack_documents
from headrace.learner.rounding import moved_off_grid, to_serving_dtype
from headrace.verifiers.errors import WrongValue, opening_line

CHECK_TOLERANCE = 1e-3  # nats in float32, of a log-probability and of one more: those of -40 differ in the third place


class Policy(nn.Module):
    """The model and its head as one module, so that FSDP gathers the head's weights with the root's."""

    def __init__(self, model: PreTrainedModel, head_chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.head_chunk_tokens = head_chunk_tokens

    def forward(
        self, pack: Pack, loss: TokenLoss | None = None
    ) -> tuple[Float[Tensor, " responses"], Float[Tensor, " responses"]] | Float[Tensor, ""]:
        """With `loss` its sum over the pack's targets, differentiable; without, log-probabilities and entropies."""
        hidden = self.model.base_model(
            input_ids=pack.token_ids[None], position_ids=pack.positions[None], use_cache=False, pack=pack
        ).last_hidden_state[0]
        predicting = hidden.index_select(0, pack.predictors)
        head = self._head()
        if loss is None:
            return token_logprobs(predicting, head, pack.targets, pack.temperatures, self.head_chunk_tokens)
        return token_loss(predicting, head, pack.targets, pack.temperatures, self.head_chunk_tokens, loss)

    def logprobs(self, pack: Pack) -> Float[Tensor, " responses"]:
        """Log-probabilities of the pack's targets, float32, without a gradient."""
        with torch.no_grad():
            logprobs, _ = self(pack)
        return logprobs

    def _head(self) -> HeadWeights:
        projection = self.model.get_output_embeddings()
        if projection is None:
            raise WrongValue("model.base", f"{type(self.model).__name__} has no language-model head")
        return HeadWeights(projection.weight, getattr(projection, "bias", None))

    def decoder_layers(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and persistent buffers by their Hugging Face names, each once: a tied head is its embedding."""
        yield from self.model.named_parameters()
        persistent = self.model.state_dict(keep_vars=True).keys()
        for name, buffer in self.model.named_buffers():
            if name in persistent:
                yield name, buffer

    def move_off_grid(self) -> None:
        """Before it is sharded and computes in bfloat16: see learner/rounding.py."""
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(moved_off_grid(name, parameter.data))

    def served_tensors(self, dtype: torch.dtype, *, dithered: bool) -> Iterator[tuple[str, Tensor]]:
        """The whole tensors by Hugging Face name, in `dtype`, on their device; a tied head is left out.

        Collective where the policy is sharded: every rank iterates to the end. A tensor may share memory with the live
        weights when `dtype` is theirs: copy what is kept beyond the next step.
        """
        for name, tensor in self.named_tensors():
            data = tensor.detach()
            whole = data.full_tensor() if isinstance(data, DTensor) else data
            yield name, to_serving_dtype(name, whole, dtype, dithered=dithered)


def load_policy(name: str, *, head_chunk_tokens: int, activation_checkpointing: bool = False) -> Policy:
    """The policy of a Hugging Face folder or hub id, in float32 on the CPU, ready to be sharded.

    Raises:
        WrongValue: the model cannot be loaded, or computes something else in packs than by itself.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise WrongValue(
            "model.base", f"{name} cannot be loaded as a causal language model: {opening_line(error)}"
        ) from error
    for module in model.modules():
        # The learner's log-probabilities are compared with a generator's, which drops nothing out.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_onednn(model)
    policy = Policy(model, head_chunk_tokens)
    if not policy.decoder_layers():
        raise WrongValue(
            "model.base", f"{name}: {type(model).__name__} has no decoder layers that transformers marks as such"
        )
    expected = naive_check_logprobs(model)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    except ValueError as error:
        raise WrongValue(
            "model.base", f"{name}: {type(model).__name__} does not let its attention be replaced"
        ) from error
    check_packing(policy, expected, name)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def check_documents(vocabulary: int) -> list[Document]:
    """Two prompts that begin alike, with two samples each, of tokens that any vocabulary has."""
    token = iter(range(3, 1000))
    prefix = [next(token) % vocabulary for _ in range(3)]
    documents = []
    for _ in range(2):
        prompt = prefix + [next(token) % vocabulary for _ in range(2)]
        samples = [[next(token) % vocabulary for _ in range(length)] for length in (4, 3)]
        documents.append(Document(prompt, [Branch(sample, [0.0] * len(sample), 0.0) for sample in samples], 0.7))
    return documents


@torch.no_grad()
def naive_check_logprobs(model: PreTrainedModel) -> Float[Tensor, " responses"]:
    """The check documents' log-probabilities by the model's own forward, one sample at a time."""
    rows = []
    for document in check_documents(model.config.get_text_config().vocab_size):
        for branch in document.branches:
            ids = torch.tensor(document.prompt + branch.token_ids)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, len(document.prompt) - 1 : -1].float()
            logprobs = torch.log_softmax(logits / document.temperature, -1)
            rows.append(logprobs.gather(-1, torch.tensor(branch.token_ids)[:, None])[:, 0])
    return torch.cat(rows)


def check_packing(policy: Policy, expected: Float[Tensor, " responses"], name: str) -> None:
    """Compare the packed log-probabilities with those of each sample alone.

    An architecture whose layers carry a state along the sequence, whose position encoding ignores `position_ids` or whose
    logits are scaled after the head would train on wrong numbers without a sign of it. Raises WrongValue for such a one.
    """
    documents = check_documents(policy.model.config.get_text_config().vocab_size)
    (pack,) = pack_documents(documents, max_tokens=1000)
    distances = (policy.logprobs(pack) - expected).abs()
    if not bool((distances < CHECK_TOLERANCE * (1 + expected.abs())).all()):
        kind = type(policy.model).__name__
        raise WrongValue(
            "model.base",
            f"{name}: {kind} gives other log-probabilities in a pack than alone (up to {distances.max().item():.3g} nats): "
            "this architecture cannot be trained with shared prompts",
        )
