"""What is a checkpoint and what is not: the marker is the last thing written and the first thing deleted."""

import pytest

from headrace.cluster.checkpoint import MARKER, CheckpointState, CheckpointStore
from headrace.cluster.rollout_queue import Ledger
from headrace.verifiers.errors import UserError


def state(step: int) -> CheckpointState:
    return CheckpointState(step, 12.5, Ledger(step * 4, [(0, 3), (1, 0)], step * 4, 1, 2, step))


def write(store: CheckpointStore, step: int) -> None:
    (store.begin(step) / "weights").write_text(f"of step {step}")
    store.complete(state(step))


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path, keep=2)


def test_there_is_no_checkpoint_before_the_first(store):
    assert store.newest() is None


def test_the_newest_checkpoint_comes_back_with_its_ledger_and_its_files(store):
    write(store, 1)
    write(store, 2)
    newest = store.newest()
    assert newest.state == state(2)
    assert (newest.learner / "weights").read_text() == "of step 2"


def test_a_checkpoint_that_was_not_completed_does_not_count(store):
    write(store, 1)
    (store.begin(2) / "weights").write_text("half")
    assert store.newest().state.step == 1


def test_a_crash_between_the_state_and_the_marker_leaves_the_checkpoint_before(store, tmp_path):
    write(store, 1)
    write(store, 2)
    (tmp_path / "step-000002" / MARKER).unlink()
    assert store.newest().state.step == 1


def test_the_marker_is_not_there_before_the_state_is(store, tmp_path):
    write(store, 1)
    store.begin(2)
    (tmp_path / "step-000002" / "state.json").mkdir()  # so that it cannot be written
    with pytest.raises(OSError, match=r"state\.json"):
        store.complete(state(2))
    assert not (tmp_path / "step-000002" / MARKER).exists()
    assert store.newest().state.step == 1


def test_only_so_many_are_kept_and_unfinished_ones_are_not_counted_among_them(store, tmp_path):
    for step in (1, 2, 3):
        write(store, step)
    store.begin(4)
    write(store, 5)
    complete = sorted(folder.parent.name for folder in tmp_path.glob(f"*/{MARKER}"))
    assert complete == ["step-000003", "step-000005"]


def test_a_step_that_is_written_again_starts_from_an_empty_folder_without_a_marker(store):
    write(store, 1)
    write(store, 2)
    folder = store.begin(2)
    assert list(folder.iterdir()) == []
    assert store.newest().state.step == 1


def test_steps_are_ordered_as_numbers(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 999_999)
    write(store, 1_000_000)
    assert store.newest().state.step == 1_000_000


@pytest.mark.parametrize("content", [b"", b"{", b'{"step": "three"}', b'{"step": 2}'])
def test_a_damaged_state_is_named_with_what_to_do(store, tmp_path, content):
    write(store, 2)
    path = tmp_path / "step-000002" / "state.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged") as error:
        store.newest()
    assert str(path) in str(error.value)
    assert "delete" in str(error.value)
