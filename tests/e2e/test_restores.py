"""A backup is put back: who was forgotten since then is erased before anything is served."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from infra.data_folder import cluster_path, forgotten_path, key_encryption_key_path
from tests.e2e.program import NotStarted, Program
from tests.e2e.videos import read, upload
from tests.integration.s3_server import REGION, s3_server
from tests.support import eventually

SOMEBODY, OTHER = "somebody-3f1c", "another-77aa"
TEXT = "a text that shall be forgotten 51c2"
TITLE = "a title that shall be forgotten 51c2"
MARK = "forgotten 51c2"
TABLES = """
SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
"""

Make = Callable[..., Program]


def tables_with(program: Program, mark: str) -> list[str]:
    """Tables in which a text stands somewhere."""
    with psycopg.connect(program.database_url) as conn:
        return [
            f"{schema}.{name}"
            for schema, name in conn.execute(TABLES).fetchall()
            if conn.execute(
                sql.SQL("SELECT 1 FROM {} AS t WHERE position(%s IN t::text) > 0 LIMIT 1").format(
                    sql.Identifier(schema, name)
                ),
                (mark,),
            ).fetchone()
        ]


class Site:
    """A video of somebody else's, with a comment and a like of the person; and one of theirs."""

    def __init__(self, program: Program) -> None:
        self.program = program.start()
        somebody = program.client(SOMEBODY)
        self.video = upload(program.client(OTHER))
        self.own = upload(somebody, title=TITLE)
        read(somebody.put(f"/videos/{self.video}/like"))
        answer = somebody.post(f"/videos/{self.video}/comments", json={"content": TEXT})
        assert answer.status_code == 201, answer.text
        eventually(lambda: len(self.comments()) == 1)
        assert tables_with(program, MARK)

    def comments(self) -> list[str]:
        answer = self.program.client(OTHER).get(f"/videos/{self.video}/comments")
        return [each["content"] for each in read(answer)["items"]]

    def back_up(self, folder: Path) -> None:
        assert self.program.stop() == 0
        copy(self.program.data, folder)
        self.program.start()

    def forget(self, known: Callable[[], bool]) -> None:
        """Return once the places outside know of it."""
        ran = self.program.run("privacy", "forget", SOMEBODY, "--yes")
        assert ran.returncode == 0, ran.stderr
        eventually(known)
        assert self.program.stop() == 0

    def require_erased(self) -> None:
        """What has to hold from the first answer on."""
        program = self.program
        assert tables_with(program, MARK) == []
        told = program.client(SOMEBODY).get("/videos/liked")
        assert told.status_code == 410, told.text
        assert TEXT not in self.comments()
        assert erased_line(program)["persons"] == 1


def copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "-a", folder, to], check=True)


def erased_line(program: Program) -> dict[str, object]:
    lines = [json.loads(line) for line in program.complained.splitlines() if line[:1] == "{"]
    (found,) = [line for line in lines if line["event"] == "restored_persons_erased"]
    return dict(found)


def test_a_database_that_was_put_back_is_erased_by_what_the_data_folder_knows(
    make_program: Make, tmp_path: Path
) -> None:
    program = make_program()
    program.module = "tests.e2e.hasty_erasure"
    site = Site(program)
    site.back_up(tmp_path / "backup")
    site.forget(lambda: forgotten_path(program.data).exists())
    assert SOMEBODY.encode() not in forgotten_path(program.data).read_bytes()
    shutil.rmtree(cluster_path(program.data))
    copy(cluster_path(tmp_path / "backup"), cluster_path(program.data))
    program.start()
    site.require_erased()
    # The rest of forgetting follows, and a later start finds nothing to do.
    eventually(lambda: site.comments() == [])
    assert read(program.client(OTHER).get(f"/videos/{site.video}"))["likes"] == 1
    assert program.stop() == 0
    program.start()
    assert "restored_persons_erased" not in program.complained
    assert program.stop() == 0


def test_a_data_folder_that_was_put_back_is_erased_by_what_lies_elsewhere(
    make_program: Make, tmp_path: Path
) -> None:
    anchors = tmp_path / "elsewhere" / "seals.jsonl"
    anchors.parent.mkdir()
    site = Site(make_program(SEAL_ANCHOR=f"file:{anchors}"))
    program = site.program
    site.back_up(tmp_path / "backup")
    kept = anchors.with_name("seals.jsonl.forgotten")
    site.forget(kept.exists)
    shutil.rmtree(program.data)
    copy(tmp_path / "backup", program.data)
    assert not forgotten_path(program.data).exists()
    program.start()
    site.require_erased()
    # The data folder has learnt of it, too.
    assert forgotten_path(program.data).read_bytes() == kept.read_bytes()
    assert program.stop() == 0


def test_a_bucket_with_object_lock_knows_it_too(make_program: Make, tmp_path: Path) -> None:
    with s3_server() as s3:
        client = s3.client()
        location = {"LocationConstraint": REGION}
        client.create_bucket(
            Bucket="proofs",
            ObjectLockEnabledForBucket=True,
            CreateBucketConfiguration=location,  # type: ignore[arg-type]
        )
        place = {"SEAL_ANCHOR": "s3://proofs/seals", "SEAL_ANCHOR_LOCK": "governance"}
        site = Site(make_program(**place, **s3.settings()))
        program = site.program
        site.back_up(tmp_path / "backup")

        def known() -> bool:
            found = client.list_objects_v2(Bucket="proofs", Prefix="seals.forgotten/")
            return found["KeyCount"] == 1

        site.forget(known)
        shutil.rmtree(program.data)
        copy(tmp_path / "backup", program.data)
        program.start()
        site.require_erased()
        assert program.stop() == 0


def test_a_list_that_can_not_be_read_stops_the_start(make_program: Make, tmp_path: Path) -> None:
    program = make_program(SEAL_ANCHOR=f"file:{tmp_path / 'seals.jsonl'}")
    (tmp_path / "seals.jsonl.forgotten").write_text("something else\n")
    with pytest.raises(NotStarted, match=r"seals\.jsonl\.forgotten, line 1 is no entry"):
        program.start()
    assert program.servers() == []


def test_a_backup_under_another_key_encryption_key_is_told(make_program: Make) -> None:
    program = make_program().start()
    program.client(SOMEBODY).get("/videos")
    assert program.stop() == 0
    key_encryption_key_path(program.data).write_text("ab" * 32)
    with pytest.raises(NotStarted, match="is another key-encryption key"):
        program.start()
