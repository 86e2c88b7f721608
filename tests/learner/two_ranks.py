"""What two learner ranks do in the tests: `two_ranks.py RANK PORT MODEL FOLDER`; rank 0 writes FOLDER/results.pt.

A module apart, because the tests run it as processes, and import it for the same inputs with one rank.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from headrace.learner.losses import LossOptions
from headrace.learner.rank import LearnerRank, StepMetrics
from headrace.learner.settings import LearnerSettings
from headrace.learner.supervised import SupervisedExample
from headrace.verifiers.records import (
    Completion,
    Group,
    Prompt,
    Sampling,
    StopReason,
    Verdict,
    VerdictKind,
    WeightSpan,
)

VOCABULARY = 97
WITH_REFERENCE = LossOptions(kl_coef=0.05)
PROBES = [[5, 6, 7, 8, 9], [1, 2], [90, 3, 3, 60]]


def settings_for(model: Path, **changes: object) -> LearnerSettings:
    # Packs of 40 tokens: several passes a step. The large rate makes a wrong gradient visible after one step.
    values = {
        "learning_rate": 1e-3,
        "max_tokens_per_pack": 40,
        "head_chunk_tokens": 16,
        "weight_decay": 0.01,
        "threads": 1,
    }
    return LearnerSettings(model=str(model), total_steps=10, **(values | changes))


def random_groups(seed: int, count: int = 5) -> list[Group]:
    """Groups of four samples with one infra error here and there, and one group without variance."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    groups = []
    for number in range(count):
        completions = []
        for index, length in enumerate((6, 3, 8, 1)):
            tokens = ids(length)
            kind = VerdictKind.INFRA_ERROR if (number, index) == (1, 2) else VerdictKind.FAIL
            reward = 0.5 if number == 2 else float(torch.rand((), generator=generator))
            logprobs = (-4.5 + torch.randn(length, generator=generator) * 0.5).tolist()
            completions.append(
                Completion(
                    "",
                    tokens,
                    logprobs,
                    [WeightSpan(0, 0, length)],
                    StopReason.STOP,
                    Verdict(kind, reward, "test"),
                    0.0,
                )
            )
        prompt = Prompt(0, number, [1, 2, 3, *ids(4)], {})
        groups.append(Group(prompt, completions, "generator-0", Sampling(8, temperature=0.9)))
    return groups


def random_examples(seed: int, count: int) -> list[SupervisedExample]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    return [SupervisedExample([1, 2, *ids(5)], ids(3 + number)) for number in range(count)]


def weights(rank: LearnerRank) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in rank.named_full_tensors(torch.float32)}


def comparable(metrics: StepMetrics) -> dict[str, float]:
    """The values that may not depend on how the groups are spread."""
    names = (
        "step", "loss", "grad_norm", "learning_rate", "kl", "mismatch_kl", "clip_share", "tis_truncated_share",
        "effective_sample_share", "entropy", "trained_tokens", "groups_without_gradient",
    )  # fmt: skip
    return {name: getattr(metrics, name) for name in names}


def main(rank_number: int, port: int, model: Path, folder: Path) -> None:
    rank = LearnerRank(settings_for(model, loss=WITH_REFERENCE), rank_number, 2)
    rank.setup("127.0.0.1", port)
    results: dict[str, object] = {}

    def mine(groups: list, cut: int) -> list:
        return groups[:cut] if rank_number == 0 else groups[cut:]

    uneven = rank.train_step(mine(random_groups(1), 1), 1)
    results["uneven"] = comparable(uneven)
    shares = [None, None]
    dist.all_gather_object(shares, (uneven.rank_tokens, uneven.learner_tokens))
    results["tokens of each rank, and of all"] = shares
    results["weights after 1"] = weights(rank)
    results["alone"] = comparable(rank.train_step(mine(random_groups(2), 5), 2))
    rank.save(folder / "checkpoint")
    results["checkpoint"] = folder / "checkpoint"
    results["weights after 2"] = weights(rank)
    results["probe"] = rank.probe(PROBES)
    results["after the checkpoint"] = comparable(rank.train_step(mine(random_groups(3), 2), 3))
    results["weights after 3"] = weights(rank)
    rank.load(folder / "checkpoint")
    results["probe after load"] = rank.probe(PROBES)
    results["supervised"] = rank.supervised_step(mine(random_examples(4, 5), 4), 1e-3)
    rank.finish_supervised()
    results["weights after supervised"] = weights(rank)
    if rank_number == 0:
        torch.save(results, folder / "results.pt")
    rank.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
