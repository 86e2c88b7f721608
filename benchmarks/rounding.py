"""What is left in the served bfloat16 model of what a few supervised steps have taught, by how its weights are rounded.

    python -m benchmarks.rounding

Four steps on the booking example's warm-start rows; then the mean distance, in nats a token, of the rounded model's
log-probabilities of two prompts from the float32 learner's, beside the distance that the steps moved them. And the same of
learners that compute in bfloat16 themselves, which have taken the same steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from headrace.actors.weight_sync.transport import free_port
from headrace.cluster.job_file import load_job
from headrace.cluster.preparation import PreparedJob, prepare
from headrace.learner.rank import LearnerRank
from headrace.learner.rounding import to_serving_dtype
from headrace.learner.settings import LearnerSettings
from headrace.verifiers.telemetry import LOOPBACK

JOB = Path(__file__).parents[1] / "examples" / "booking" / "job.toml"
STEPS, BATCH, LEARNING_RATE = 4, 8, 5e-5


def distance(left: list[list[float]], right: list[list[float]]) -> float:
    gaps = [abs(a - b) for row, other in zip(left, right, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(gaps) / len(gaps)


@torch.no_grad()
def logprobs(model: torch.nn.Module, sequences: list[list[int]]) -> list[list[float]]:
    result = []
    for sequence in sequences:
        ids = torch.tensor(sequence)
        values = torch.log_softmax(model(ids[None]).logits[0, :-1].float(), -1)
        result.append(values.gather(-1, ids[1:, None])[:, 0].tolist())
    return result


def main() -> None:
    job = prepare(load_job(JOB))
    learner = started(LearnerSettings(model=job.model, total_steps=STEPS))
    before = learner.probe(job.probe_sequences)
    base = {name: tensor.clone() for name, tensor in learner.named_full_tensors(torch.bfloat16)}
    taught = teach(learner, job)
    weights = {name: tensor.clone() for name, tensor in learner.named_full_tensors(torch.float32)}
    learner.close()
    print(f"moved by {STEPS} steps: {distance(before, taught):.3f} nats a token\n")
    print("| rounding | distance from the learner, nats a token | share of the movement | weights that changed |")
    print("|---|---|---|---|")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    for name in ("nearest", "dithered"):
        rounded = {
            key: to_serving_dtype(key, tensor, torch.bfloat16, dithered=name == "dithered")
            for key, tensor in weights.items()
        }
        model.load_state_dict({key: tensor.float() for key, tensor in rounded.items()}, strict=False)
        left = distance(logprobs(model, job.probe_sequences), taught)
        changed = sum(int((rounded[key] != base[key]).sum()) for key in base)
        total = sum(tensor.numel() for tensor in base.values())
        print(f"| {name} | {left:.3f} | {left / distance(before, taught):.0%} | {changed / total:.0%} |")
    for name in ("nearest", "dithered"):
        settings = LearnerSettings(
            model=job.model, total_steps=STEPS, dtype="bfloat16", dithered_rounding=name == "dithered"
        )
        learner = started(settings)
        left = distance(teach(learner, job), taught)
        learner.close()
        print(
            f"| {name}, in a learner that computes in bfloat16 | {left:.3f} | {left / distance(before, taught):.0%} | |"
        )


def started(settings: LearnerSettings) -> LearnerRank:
    learner = LearnerRank(settings, rank=0, world_size=1)
    learner.setup(LOOPBACK, free_port(LOOPBACK))
    return learner


def teach(learner: LearnerRank, job: PreparedJob) -> list[list[float]]:
    """The learner's log-probabilities of the probe sequences after the steps."""
    for step in range(STEPS):
        learner.supervised_step(job.warm_start[step * BATCH : (step + 1) * BATCH], LEARNING_RATE)
    return learner.probe(job.probe_sequences)


if __name__ == "__main__":
    main()
