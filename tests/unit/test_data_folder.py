"""A data folder has one user and one format; whatever else it is, it stays untouched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.data_folder import FORMAT_FILE, DataFolder, DataFolderError, lock_holder


def contents(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in sorted(folder.iterdir())}


def test_a_new_folder_is_made_and_marked(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "new" / "data") as folder:
        assert folder.path.joinpath(FORMAT_FILE).read_text() == "1\n"
        assert folder.postgres.parent == folder.objects.parent == folder.secret.parent


def test_a_folder_can_be_used_again(tmp_path: Path) -> None:
    DataFolder(tmp_path).close()
    DataFolder(tmp_path).close()


def test_a_second_user_is_told_who_holds_it(tmp_path: Path) -> None:
    with DataFolder(tmp_path):
        assert lock_holder(tmp_path) == os.getpid()
        with pytest.raises(DataFolderError, match=rf"in use by another .*pid {os.getpid()}\)"):
            DataFolder(tmp_path)
        assert lock_holder(tmp_path) == os.getpid()
    assert lock_holder(tmp_path) is None


def test_closing_twice_does_not_free_somebody_elses_file(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.close()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    folder.close()
    os.fstat(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "advice"),
    [("2\n", "use the newer Backlot"), ("banana\n", "damaged"), ("", "damaged"), ("0", "damaged")],
)
def test_another_format_is_refused_untouched(tmp_path: Path, text: str, advice: str) -> None:
    (tmp_path / FORMAT_FILE).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(DataFolderError, match=advice):
        DataFolder(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataFolderError, match=r"is not Backlot's: it holds 'letter.txt'"):
        DataFolder(tmp_path)
    assert contents(tmp_path) == {"letter.txt": "dear"}


def test_a_fresh_mount_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    DataFolder(tmp_path).close()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataFolderError, match="BACKLOT_DATA_DIR"):
            DataFolder(path)


def test_an_unwritable_place_is_named() -> None:
    # Not a chmod: root may write anywhere but where the kernel refuses.
    with pytest.raises(DataFolderError, match=r"/proc/backlot is not writable .*BACKLOT_DATA_DIR"):
        DataFolder(Path("/proc/backlot"))
