"""The data: rows from a file, checked, as token ids, in a seeded order.

A prompt's stable name is (epoch, ordinal): `ordinal` is the row's place in the file, and each epoch has its own order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet

from headrace.verifiers.base import deeper_than
from headrace.verifiers.errors import UserError, WrongValue
from headrace.verifiers.records import Prompt

MAX_ROW_DEPTH = 100  # what pickles and compares rows on the way has a frame of Python's for each level

if TYPE_CHECKING:  # the queue's process holds a PromptSource and no tokenizer
    from transformers import PreTrainedTokenizerBase


def read_rows(path: Path, key: str) -> list[dict[str, Any]]:
    """All rows of a JSONL or Parquet file.

    Args:
        path: the file; `.parquet` is read as Parquet, everything else as JSONL.
        key: the configuration key that names it, for the message.

    Raises:
        WrongValue: missing, unreadable or empty.
        UserError: a malformed line, or a row that cannot cross processes, by line.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise WrongValue(key, f"{path}: is no regular file")
        rows = pyarrow.parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else list(_parse_lines(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WrongValue(key, f"{path}: no such file") from error
    # ValueError: bytes that are no text, or a path with a NUL in it.
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise WrongValue(key, f"{path}: cannot be read: {error}") from error
    if not rows:
        raise WrongValue(key, f"{path}: holds no rows")
    for number, row in enumerate(rows, 1):
        if wrong := _unsendable(row):
            raise UserError(f"{place_of_row(path, number)}: {wrong}")
    return rows


def place_of_row(path: Path, number: int) -> str:
    """Where the row of that number (counted from 1) stands: `file:line`; a Parquet file has no lines."""
    if path.suffix == ".parquet":
        return f"{path}: row {number}"
    with path.open(encoding="utf-8-sig") as lines:
        filled = (at for at, line in enumerate(lines, 1) if line.strip())
        return f"{path}:{next(itertools.islice(filled, number - 1, None))}"


def _parse_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                reason = f"{error.msg} (column {error.colno})"
                raise UserError(f"{path}:{number}: not a JSON object: {reason}{_layout_hint(line)}") from error
            except RecursionError as error:
                raise UserError(f"{path}:{number}: is nested too deeply") from error
            except ValueError as error:  # an integer of thousands of digits
                raise UserError(f"{path}:{number}: cannot be read: {error}") from error
            if not isinstance(row, dict):
                what = f"a row is a JSON object, not {type(row).__name__}"
                raise UserError(f"{path}:{number}: {what}{_layout_hint(line)}")
            yield row


def _layout_hint(line: str) -> str:
    """For a file that is one JSON document, or that has its objects over several lines."""
    document = line.lstrip().startswith("[") or line.strip() == "{"
    return "; write one object a line, with no list around them" if document else ""


def _unsendable(row: dict[str, Any]) -> str | None:
    """What keeps a row from crossing processes; None where nothing does."""
    if deeper_than(row, MAX_ROW_DEPTH):
        return "is nested too deeply"
    try:
        msgspec.msgpack.encode(row)
    except OverflowError:
        return "holds an integer beyond 64 bits"
    except UnicodeEncodeError:
        return "holds text that is not Unicode (half of a surrogate pair)"
    except TypeError as error:  # Parquet has types of its own
        return f"holds a value that no worker can be sent: {error}"
    return None


def rows_digest(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows as `read_rows` gives them: their order counts, the file's white space does not."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(msgspec.msgpack.encode(row, order="deterministic"))
    return digest.hexdigest()


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
            UserError: a row without a usable prompt, by line; or none that fits.
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
                raise UserError(f"{place_of_row(path, number)}: {error}") from error
            self._token_ids.append(ids)
            if len(ids) > max_prompt_tokens:
                self.too_long.append(number - 1)
        excluded = set(self.too_long)
        self._ordinals = [ordinal for ordinal in range(len(rows)) if ordinal not in excluded]
        if not self._ordinals:
            raise UserError(
                f"{path}: no prompt fits: all are longer than {max_prompt_tokens} tokens, which is what "
                "model.max_length - rollout.max_tokens leaves"
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
