"""A sequence-classification model as a function from conversations to raw scores.

Imported only in a worker that scores: torch and transformers take seconds to load.
"""

from __future__ import annotations

import gc
from typing import Any

import jinja2
import msgspec
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from headrace.verifiers.base import printable
from headrace.verifiers.errors import UserError, WrongOption, opening_line

DEFAULT_TOKENS = 4096
_MOST_CHARS_PER_TOKEN = 64  # a completion with more on average is no text; it is not even tokenized
_MARK = "completion7b1f4e9d"  # stands for the completion while the chat template is filled in

Messages = list[dict[str, Any]]


class Unscorable(Exception):
    """A completion that the model must not be shown: `too_long` or `control_token`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadConversation(Exception):
    """The row's prompt does not fit the model's chat template."""


class Encoded(msgspec.Struct, frozen=True):
    """What the model reads. `cut_tokens` of the prompt's start were left out."""

    token_ids: list[int]
    cut_tokens: int


class ScoreModel:
    """The model and its tokenizer, on one device.

    Raises UserError where the folder cannot be loaded, has no score head with one output, or lacks the chat template.
    """

    def __init__(
        self, name: str, *, device: str, dtype: str, max_length: int | None, chat_template: bool, batch_size: int
    ) -> None:
        self._device = _device(device)
        self._batch_size = batch_size
        self._chat_template = chat_template
        self._tokenizer = _tokenizer(name)
        self._model = _model(name, getattr(torch, dtype)).to(self._device)  # type: ignore[arg-type]
        self._config = self._model.config.get_text_config()
        self._pad_id = _usable_pad_id(self._config)
        self.max_length = self._length(max_length)
        # A word that is not known is no control token.
        unknown: Any = self._tokenizer.unk_token_id
        self._control_ids = frozenset(self._tokenizer.all_special_ids) - {unknown}
        self._before, self._after = ([], []) if chat_template else self._frame()
        if chat_template:
            if not getattr(self._tokenizer, "chat_template", None):
                raise _wrong("model", f"{name} has no chat template; set `chat_template = false` for plain text")
            try:
                self._render([{"role": "user", "content": "Hello"}])
            except BadConversation as error:
                raise _wrong("model", f"{name}: {error}") from error

    def encode(self, messages: Messages, completion: str) -> Encoded:
        """The token ids of a conversation that ends with the completion: no control token stands in the completion's place,
        and where it is too long, the oldest tokens of the prompt go.

        Raises Unscorable for the completion's faults and BadConversation for the prompt's.
        """
        if len(completion) > _MOST_CHARS_PER_TOKEN * self.max_length:
            raise Unscorable("too_long", f"{len(completion)} characters")
        completion = _encodable(completion)
        head, tail = self._render(messages) if self._chat_template else (_plain(messages), "")
        before, after = self._before + self._ids(head), self._ids(tail) + self._after
        token_ids = self._before + self._ids(head + completion + tail) + self._after
        if self._controls(token_ids) != self._controls(before) + self._controls(after):
            # The text of a control token would forge a turn: spell it out.
            middle = self._ids(completion, split_special_tokens=True)
            if self._controls(middle):
                raise Unscorable("control_token", "a control token of the model that cannot be spelt out")
            token_ids = before + middle + after
        cut = max(0, len(token_ids) - self.max_length)
        # A model that was trained with a first token of its own wants it there.
        kept = 1 if cut and token_ids[0] in self._control_ids else 0
        if kept + cut > len(before):
            raise Unscorable("too_long", f"{len(token_ids) - len(before)} tokens; {self.max_length} fit in all")
        return Encoded(token_ids[:kept] + token_ids[kept + cut :], cut)

    def scores(self, rows: list[list[int]]) -> list[float | None]:
        """The raw score of each row of token ids, in order, float32; None where one row alone is too much for the memory."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # little padding in each batch
        scores: list[float | None] = [None] * len(rows)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            for index, score in zip(chosen, self._batch_scores([rows[index] for index in chosen]), strict=True):
                scores[index] = score
        return scores

    def release(self) -> None:
        """Give the memory back, the device's too."""
        del self._model
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch_scores(self, rows: list[list[int]]) -> list[float | None]:
        try:
            return list(self._forward(rows))
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                return [None]
        half = len(rows) // 2
        return self._batch_scores(rows[:half]) + self._batch_scores(rows[half:])

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> list[float]:
        pad_id = self._pad_id
        if pad_id is None:
            # transformers scores the last token that is no padding, by its id: one that no row has serves.
            used = {token for row in rows for token in row}
            pad_id = next(token for token in range(len(used) + 1) if token not in used)
            self._config.pad_token_id = pad_id
        width = max(len(row) for row in rows)
        # Padding on the right, whatever the tokenizer would do: positions are then those of the row alone.
        token_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        return self._model(input_ids=token_ids, attention_mask=mask).logits[:, 0].float().tolist()

    def _render(self, messages: Messages) -> tuple[str, str]:
        """What the chat template puts before the completion and after it."""
        conversation = [*messages, {"role": "assistant", "content": _MARK}]
        try:
            text: Any = self._tokenizer.apply_chat_template(conversation, tokenize=False)
        except (jinja2.TemplateError, TypeError) as error:
            raise BadConversation(f"the prompt does not fit the model's chat template: {error}") from error
        parts = _encodable(text).split(_MARK)
        if len(parts) != 2:
            raise BadConversation(f"the model's chat template shows the last message {len(parts) - 1} times, not once")
        return parts[0], parts[1]

    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after every plain text."""
        bare, framed = self._ids("a"), list(self._tokenizer("a")["input_ids"])
        start = next(
            (start for start in range(len(framed)) if framed[start : start + len(bare)] == bare),
            None,
        )
        if start is None:
            raise _wrong(
                "model", "its tokenizer writes a text otherwise when it adds special tokens; set `chat_template`"
            )
        return framed[:start], framed[start + len(bare) :]

    def _ids(self, text: str, split_special_tokens: bool = False) -> list[int]:
        if not text:
            return []
        return list(
            self._tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False)[
                "input_ids"
            ]
        )

    def _controls(self, token_ids: list[int]) -> int:
        return sum(token in self._control_ids for token in token_ids)

    def _length(self, asked: int | None) -> int:
        limits = [getattr(self._config, "max_position_embeddings", None), self._tokenizer.model_max_length]
        most = min([limit for limit in limits if limit is not None and 0 < limit < 1 << 40], default=None)
        if asked is None:
            return DEFAULT_TOKENS if most is None else min(most, DEFAULT_TOKENS)
        if most is not None and asked > most:
            raise _wrong("max_length", f"it is {asked}; the model takes {most} tokens")
        return asked


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _wrong(
            "model", f"the tokenizer of {name} cannot be loaded: {printable(opening_line(error), 300)}"
        ) from error


def _model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    try:
        # Mismatched sizes are refused below, with the head's shape instead of a table on standard error.
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _wrong("model", f"{name} cannot be loaded: {printable(opening_line(error), 300)}") from error
    # transformers fills in at random what it does not find.
    for key, there, wanted in sorted(found["mismatched_keys"]):
        raise _wrong("model", f"{name}: `{key}` has the shape {list(there)}, and one score needs {list(wanted)}")
    for key in sorted(found["missing_keys"]):
        raise _wrong("model", f"{name} has no `{key}`: it is no trained reward model with a score head")
    model.config.use_cache = False
    return model


def _usable_pad_id(config: Any) -> int | None:
    pad_id = getattr(config, "pad_token_id", None)
    return pad_id if pad_id is not None and 0 <= pad_id < config.vocab_size else None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises depends on its build
        raise _wrong("device", f"{name!r} is not there: {printable(opening_line(error), 300)}") from error
    return device


def _plain(messages: Messages) -> str:
    return _encodable("\n\n".join(str(message.get("content", "")) for message in messages))


def _encodable(text: str) -> str:
    """Without lone surrogates, which tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()


def _wrong(option: str, message: str) -> UserError:
    return WrongOption(option, f"option `{option}` of verifier `reward_model`: {message}")
