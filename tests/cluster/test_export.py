"""The folder that an export is written to."""

import pytest

from headrace.cluster.export import new_folder
from headrace.verifiers.errors import UserError


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("taken", "exists already; name a folder that does not"),
        ("file/model", "file/model: cannot be made: "),
        ("n" * 300, "cannot be made: .*File name too long"),
        ("a\0b", "cannot be made: embedded null byte"),
    ],
)
def test_a_folder_that_cannot_be_made_is_one_line_before_anything_is_loaded(tmp_path, name, complaint):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=complaint), new_folder(tmp_path / name):
        raise AssertionError("a model was loaded")


def test_what_cannot_be_written_leaves_no_folder_and_names_it(tmp_path):
    folder = tmp_path / "model"

    def write() -> None:
        (folder / "config.json").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"model: cannot be written: .*No space left"), new_folder(folder):
        write()
    assert not folder.exists()


def test_what_was_written_stays(tmp_path):
    with new_folder(tmp_path / "of" / "models"):
        (tmp_path / "of" / "models" / "config.json").touch()
    assert (tmp_path / "of" / "models" / "config.json").exists()
