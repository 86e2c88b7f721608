"""The data: rows from a file, checked, as token ids, in a seeded order.

A prompt's stable name is (epoch, ordinal): `ordinal` is the row's place in the file, and each epoch has its own order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet

from headrace.verifiers.errors import UserError
from headrace.verifiers.records import Prompt

if TYPE_CHECKING:  # the queue's process holds a PromptSource and no tokenizer
    from transformers import PreTrainedTokenizerBase


def read_rows(path: Path, key: str) -> list[dict[str, Any]]:
    """All rows of a JSONL or Parquet file.

    Args:
        path: the file; `.parquet` is read as Parquet, everything else as JSONL.
        key: the configuration key that names it, for the message.

    Raises:
        UserError: missing, unreadable, empty, or a malformed line, by number.
    """
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file")
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else list(_parse_lines(path))
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path}: cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{key}: {path}: holds no rows")
    return rows


def _parse_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not a JSON object: {error.msg} (column {error.colno})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a row is a JSON object, not {type(row).__name__}")
            yield row


class PromptFormat(msgspec.Struct, frozen=True):
    """How a row becomes a prompt's tokens."""

    prompt_field: str
    system: str | None
    chat_template: bool

    def messages(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The chat messages of a row. Raises ValueError, saying what is wrong with it."""
        value = row.get(self.prompt_field)
        if value is None:
            raise ValueError(f"has no {self.prompt_field!r} field (data.prompt_field); it has {sorted(row)}")
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"{self.prompt_field!r} is empty")
            messages = [{"role": "user", "content": value}]
        elif isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
            messages = value
        else:
            raise ValueError(f"{self.prompt_field!r} is neither a string nor a list of chat messages")
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return system + messages

    def text(self, row: dict[str, Any]) -> str:
        """What a person reads as the prompt: the last message."""
        return str(self.messages(row)[-1].get("content", ""))

    def encode(self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The prompt's token ids, [tokens]. Raises ValueError, saying what is wrong with the row."""
        messages = self.messages(row)
        if not self.chat_template:
            return tokenizer("\n\n".join(str(message.get("content", "")) for message in messages))["input_ids"]
        try:
            ids: Any = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"does not fit the model's chat template: {error}") from error
        return list(ids["input_ids"])


class PromptSource:
    """Prompts that fit, in a seeded order; those that do not are listed in `too_long`."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        path: Path,
        layout: PromptFormat,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        seed: int | None,
    ) -> None:
        """
        Args:
            seed: of the order; None keeps the file's.

        Raises:
            UserError: a row without a usable prompt, by number; or none that fits.
        """
        self.path = path
        self._rows = rows
        self._token_ids: list[list[int]] = []
        self._seed = seed
        self.too_long: list[int] = []
        for number, row in enumerate(rows, 1):
            try:
                ids = layout.encode(row, tokenizer)
            except ValueError as error:
                raise UserError(f"{path}: row {number} {error}") from error
            self._token_ids.append(ids)
            if len(ids) > max_prompt_tokens:
                self.too_long.append(number - 1)
        excluded = set(self.too_long)
        self._ordinals = [ordinal for ordinal in range(len(rows)) if ordinal not in excluded]
        if not self._ordinals:
            raise UserError(
                f"{path}: no prompt fits: all are longer than {max_prompt_tokens} tokens (model.max_length)"
            )
        self._order: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        """Prompts in an epoch."""
        return len(self._ordinals)

    def at(self, position: int) -> Prompt:
        """The prompt at a place in the endless sequence of epochs, counted from 0."""
        epoch, place = divmod(position, len(self._ordinals))
        return self.prompt(epoch, self._epoch_order(epoch)[place])

    def prompt(self, epoch: int, ordinal: int) -> Prompt:
        return Prompt(epoch, ordinal, self._token_ids[ordinal], self._rows[ordinal])

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order is None or self._order[0] != epoch:
            order = list(self._ordinals)
            if self._seed is not None:
                np.random.default_rng([self._seed, epoch]).shuffle(order)
            self._order = (epoch, order)
        return self._order[1]
