"""A trained reward model: a Hugging Face sequence classifier with one output, run in the verification worker.

A reward model is a model, and a policy finds what it likes beyond what it was trained on. What is done here is that the
completion cannot forge a turn of the conversation, cannot push part of itself out of the model's sight, and gets the same
score in whatever batch it comes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from headrace.verifiers.base import Options, Verifier, not_run, parse_options, printable, rebuild, scored
from headrace.verifiers.errors import WrongOption
from headrace.verifiers.records import Sample, Verdict, VerdictKind

if TYPE_CHECKING:
    from headrace.verifiers.reward_scorer import ScoreModel


class RewardModelOptions(Options):
    model: str = Field(min_length=1)
    """Folder, or name on the hub. Every verification worker reads it: the folder is on all of their nodes."""
    prompt_field: str = "prompt"
    """Row field with the prompt: a string, or a list of chat messages."""
    system: str | None = None
    """A system message before it."""
    chat_template: bool = True
    """Prompt and completion as a conversation in the model's chat template; false: one after the other, as plain text."""
    max_length: int | None = Field(None, ge=8)
    """Tokens; the prompt's oldest go first. None: what the model takes, at most 4096."""
    batch_size: int = Field(8, ge=1)
    """Samples in one forward pass."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto`: a GPU where the worker has one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights; in half precision a score moves in its second or third digit with the batch it comes in."""
    scaling: Literal["sigmoid", "affine"] = "sigmoid"
    """How a raw score becomes a reward. `affine`: centre - width gives 0, centre + width gives 1, beyond is clipped."""
    center: float = Field(0.0, allow_inf_nan=False)
    """The raw score that gives 0.5."""
    width: float = Field(1.0, gt=0, allow_inf_nan=False)
    """In raw scores; for `sigmoid` what is divided by."""
    pass_reward: float = Field(0.5, gt=0, le=1)
    """The least reward that passes."""


class RewardModelVerifier(Verifier):
    """The options of `RewardModelOptions` by name. `start` loads the model, `close` releases it.

    Reasons: `scored`; `too_long`, `control_token` (the completion cannot be shown to the model: 0). As infra_error:
    `bad_row`, `score_not_finite`, `out_of_memory`. Raises UserError for wrong options, and from `start`, or the first
    verdict, for a model that cannot be loaded or has no trained score head.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse_options(RewardModelOptions, options, "reward_model")
        self._lock = threading.Lock()
        self._model: ScoreModel | None = None

    @classmethod
    def from_options(cls, options: dict[str, Any], base_dir: Path) -> Self:
        name = options.get("model")
        if not isinstance(name, str):
            return cls(**options)
        folder = base_dir / name
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise WrongOption("model", f"option `model` of verifier `reward_model`: {folder} has no config.json")
            return cls(**{**options, "model": str(folder)})
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise WrongOption("model", f"option `model` of verifier `reward_model`: there is no folder {folder}")
        return cls(**options)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.options.model_dump())

    def start(self) -> None:
        """Load the model. Raises UserError where that fails."""
        with self._lock:
            self._loaded()

    def close(self) -> None:
        with self._lock:
            if self._model is not None:
                self._model.release()
                self._model = None

    def check_row(self, row: dict[str, Any]) -> str | None:
        field = self.options.prompt_field
        prompt = row.get(field)
        if prompt is None:
            return f"field `{field}` is missing"
        if isinstance(prompt, str):
            return None
        if not isinstance(prompt, list) or not prompt:
            return f"field `{field}` is neither a string nor a list of chat messages"
        for number, message in enumerate(prompt):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
                return f"field `{field}`: message {number} has no `role` and `content`"
        return None

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        """In batches of `batch_size`, by length. Raises UserError as `start` does."""
        from headrace.verifiers import reward_scorer  # torch and transformers: only where a model is run

        verdicts: dict[int, Verdict] = {}
        encoded: dict[int, reward_scorer.Encoded] = {}
        with self._lock:
            model = self._loaded()
            for index, sample in enumerate(samples):
                fault = self.check_row(sample.row)
                if fault is not None:
                    verdicts[index] = not_run("bad_row", message=fault)
                    continue
                try:
                    encoded[index] = model.encode(self._messages(sample.row), sample.completion)
                except reward_scorer.Unscorable as error:
                    verdicts[index] = scored(0.0, error.reason, message=printable(str(error)))
                except reward_scorer.BadConversation as error:
                    verdicts[index] = not_run("bad_row", message=printable(str(error), 500))
            scores = model.scores([each.token_ids for each in encoded.values()])
        for (index, each), score in zip(encoded.items(), scores, strict=True):
            verdicts[index] = self._verdict(score, len(each.token_ids), each.cut_tokens)
        return [verdicts[index] for index in range(len(samples))]

    def _messages(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = row[self.options.prompt_field]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        system = self.options.system
        return messages if system is None else [{"role": "system", "content": system}, *messages]

    def _verdict(self, score: float | None, tokens: int, cut_tokens: int) -> Verdict:
        if score is None:
            return not_run("out_of_memory", message=f"{tokens} tokens are too many for the device's memory")
        if not math.isfinite(score):
            return not_run("score_not_finite", message=f"the model's score is {score}")
        reward = scale(score, self.options.scaling, self.options.center, self.options.width)
        kind = VerdictKind.PASS if reward >= self.options.pass_reward else VerdictKind.FAIL
        cut = {"cut_tokens": cut_tokens} if cut_tokens else {}
        return Verdict(kind, reward, "scored", {"score": score, "tokens": tokens, **cut})

    def _loaded(self) -> ScoreModel:
        if self._model is None:
            from headrace.verifiers import reward_scorer  # as in `verify_many`

            given = self.options
            self._model = reward_scorer.ScoreModel(
                given.model,
                device=given.device,
                dtype=given.dtype,
                max_length=given.max_length,
                chat_template=given.chat_template,
                batch_size=given.batch_size,
            )
        return self._model


def scale(score: float, scaling: Literal["sigmoid", "affine"], center: float, width: float) -> float:
    """A raw score as a reward in [0, 1], 0.5 at `center`, rising.

    >>> scale(2.0, "affine", 1.0, 4.0), scale(1.0, "sigmoid", 1.0, 4.0)
    (0.625, 0.5)
    """
    distance = (score - center) / width
    if scaling == "affine":
        return min(1.0, max(0.0, 0.5 + distance / 2))
    return 0.5 * (1.0 + math.tanh(distance / 2))  # the logistic function, without overflow
