"""How a row becomes a prompt's tokens, and in which order prompts come."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from headrace.cluster.prompt_source import PromptFormat, PromptSource

CHAT = PromptFormat("prompt", None, chat_template=True)
PLAIN = PromptFormat("prompt", None, chat_template=False)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def test_the_system_message_stands_before_every_prompt(tokenizer):
    layout = PromptFormat("prompt", "be brief", chat_template=True)
    assert tokenizer.decode(layout.encode({"prompt": "hi"}, tokenizer)) == "system: be brief\nuser: hi\nassistant: "
    assert layout.text({"prompt": "hi"}) == "hi"


def test_chat_messages_are_taken_as_they_are_and_a_plain_prompt_as_its_text(tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert CHAT.messages({"prompt": turns}) == turns
    assert CHAT.text({"prompt": turns}) == "c"
    assert tokenizer.decode(PLAIN.encode({"prompt": "just this"}, tokenizer)) == "just this"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.none() | st.integers(0, 2**32), st.integers(0, 40))
def test_every_epoch_holds_every_prompt_once_in_an_order_of_its_own(source_of, count, seed, start):
    source = source_of(count, seed)
    epoch = start // count
    prompts = [source.at(epoch * count + place) for place in range(count)]
    assert sorted(prompt.ordinal for prompt in prompts) == list(range(count))
    assert {prompt.epoch for prompt in prompts} == {epoch}
    again = source_of(count, seed)
    assert again.at(start).id == source.at(start).id, "the order does not depend on what was asked before"
    if seed is None:
        assert [prompt.ordinal for prompt in prompts] == list(range(count))


@pytest.fixture(scope="module")
def source_of(tokenizer):
    def make(count: int, seed: int | None) -> PromptSource:
        rows = [{"prompt": str(index)} for index in range(count)]
        return PromptSource(rows, Path("train.jsonl"), PLAIN, tokenizer, 50, seed)

    return make


def test_another_seed_or_another_epoch_is_another_order(source_of):
    def order(seed: int, epoch: int) -> list[int]:
        source = source_of(50, seed)
        return [source.at(epoch * 50 + place).ordinal for place in range(50)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
