# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user recovers without us: a reader written from the format document alone restores what the engine wrote."""

from __future__ import annotations

import ast
import base64
import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.independent import reader
from tests.integration.restore.lab import TABLESPACE, RestoreLab, Story, tell
from tests.lab import Installation, Workspace, flip_byte, flip_bytes_sampled, prove_restore
from tests.lab.stores import fetched

REFUSED = 200
SOURCE = Path(reader.__file__)


class ReaderLab:
    """The reader as a program of its own, run as the server's user, and a repository with a past."""

    def __init__(self, workspace: Workspace, runtime: Path, story: Story) -> None:
        self.workspace = workspace
        self.story = story
        # The server's user may not be able to enter the checkout.
        self.program = workspace.directory("reader", mode=0o755) / "reader.py"
        shutil.copyfile(SOURCE, self.program)
        self.python = runtime.parent / "python"
        # It reads directories only: what lies in a bucket is fetched first.
        self.location = fetched(story.lab.locations["local"], workspace.directory("fetched"))
        self.keys = story.lab.directory / "keys"

    def command(self, *words: str | Path, location: Path | None = None, keys: Path | None = None) -> list[str]:
        places = ["--location", location or self.location, "--keys", keys or self.keys]
        # -I: neither the checkout nor the user's packages.
        return [str(word) for word in (self.python, "-I", self.program, *places, *words)]

    def run(
        self, *words: str | Path, location: Path | None = None, keys: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.workspace.run(self.command(*words, location=location, keys=keys), check=False)

    def fetch(self, words: str) -> str:
        """A restore_command; ``words`` are those of the archive, with %f and %p."""
        system = self.story.lab.cluster.system_identifier
        return f"{shlex.join(self.command('wal', system))} {words}"

    def objects(self, prefix: str) -> list[Path]:
        return sorted(path for path in (self.location / prefix).rglob("*") if path.is_file())

    def open(self, *, keys: Path | None = None) -> reader.Repository:
        reader.pack.cache_clear()
        return reader.Repository(self.location, keys or self.keys)


@pytest.fixture(scope="module")
def independent(shared_workspace: Workspace, runtime: Path, pg: Installation) -> ReaderLab:
    lab = RestoreLab(shared_workspace, runtime, shared_workspace.cluster(installation=pg))
    return ReaderLab(shared_workspace, runtime, tell(lab))


def test_reader_is_short_and_shares_no_code() -> None:
    text = SOURCE.read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"blake3", "cryptography", "msgspec", "zstandard"}
    assert len([line for line in text.splitlines() if line.strip()]) <= 210


def test_lists_the_backups(independent: ReaderLab) -> None:
    result = independent.run("list")
    assert result.returncode == 0, result.stderr
    lines = [line.split()[:4] for line in result.stdout.splitlines()]
    story = independent.story
    assert lines == [[story.full, "main", "full", "ok"], [story.incremental, "main", "incremental", "ok"]]


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_postgresql_recovers_on_what_it_restored(independent: ReaderLab, kind: str) -> None:
    story = independent.story
    backup = story.full if kind == "full" else story.incremental
    target = independent.workspace.path / f"by-reader-{kind}"
    aside = independent.workspace.path / f"by-reader-{kind}-side"
    oid = story.lab.cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = %s", TABLESPACE)
    result = independent.run("--backup", backup, "restore", target, "--tablespace", str(oid), aside)
    assert result.returncode == 0, result.stderr
    recover(independent, target)
    prove_restore(
        independent.workspace,
        target,
        golden=story.golden,
        rows=story.writer.expect_all(),
        tablespaces={TABLESPACE: aside},
    )


def recover(independent: ReaderLab, target: Path, **settings: str) -> None:
    """Prepare for recovery to the end of the archive, by hand as the document says."""
    settings = {"restore_command": independent.fetch("%f %p"), "archive_mode": "off", **settings}
    with (target / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    signal = target / "recovery.signal"
    signal.touch()
    independent.workspace.account.own(signal)


def test_recovers_to_a_restore_point(independent: ReaderLab) -> None:
    story = independent.story
    target = independent.workspace.path / "by-reader-named"
    oid = story.lab.cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = %s", TABLESPACE)
    aside = independent.workspace.path / "by-reader-named-side"
    result = independent.run("--backup", story.full, "restore", target, "--tablespace", str(oid), aside)
    assert result.returncode == 0, result.stderr
    recover(independent, target, recovery_target_name="first", recovery_target_action="promote")
    prove_restore(independent.workspace, target, rows=story.writer.expect(story.first), amcheck=False)


def test_tells_no_such_segment_from_no_answer(independent: ReaderLab) -> None:
    system = independent.story.lab.cluster.system_identifier
    destination = independent.workspace.path / "RECOVERYXLOG"
    assert independent.run("wal", system, "0000000100000FFF00000001", destination).returncode == 1
    nowhere = independent.workspace.path / "unmounted"
    assert independent.run("wal", system, "0" * 24, destination, location=nowhere).returncode == REFUSED
    assert not destination.exists()


def test_refuses_a_directory_that_is_not_empty(independent: ReaderLab) -> None:
    target = independent.workspace.directory("by-reader-taken")
    (target / "precious").write_text("mine")
    result = independent.run("restore", target)
    assert result.returncode == REFUSED
    assert "not empty" in result.stderr
    assert [path.name for path in target.iterdir()] == ["precious"]


def read_manifest(repository: reader.Repository, name: str) -> None:
    for _unused in reader.Backup(repository, name).entries:
        pass


def read_pack(repository: reader.Repository, name: str) -> None:
    found = reader.Object(repository, name, reader.PACK)
    for number in range(found.count):
        found.frame(number, reader.DATA)


def read_wal(repository: reader.Repository, name: str) -> None:
    _unused, system, _unused, file = name.split("/")
    reader.fetch_wal(repository, system, file, Path("/dev/null"))


def refuses(read: Callable[[reader.Repository, str], None], repository: reader.Repository, name: str) -> bool:
    try:
        read(repository, name)
    except Exception:
        # Damage shows in many ways; the program ends with the same exit code for all of them.
        return True
    return False


@pytest.mark.parametrize(
    ("prefix", "read"),
    [("manifests", read_manifest), ("packs", read_pack), ("wal", read_wal)],
)
def test_every_flipped_byte_is_refused(
    independent: ReaderLab, prefix: str, read: Callable[[reader.Repository, str], None]
) -> None:
    """Without the digest that a manifest has of its packs: the container alone must notice."""
    repository = independent.open()
    path = min(independent.objects(prefix), key=lambda each: each.stat().st_size)
    name = str(path.relative_to(independent.location))
    read(repository, name)
    for offset in flip_bytes_sampled(path, 400):
        assert refuses(read, repository, name), f"byte {offset} of {name} was flipped, and nobody noticed"
    read(repository, name)


def test_restores_nothing_that_starts_from_a_damaged_pack(independent: ReaderLab) -> None:
    path = max(independent.objects("packs"), key=lambda each: each.stat().st_size)
    target = independent.workspace.path / "by-reader-damaged"
    oid = independent.story.lab.cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = %s", TABLESPACE)
    aside = independent.workspace.path / "by-reader-damaged-side"
    middle = path.stat().st_size // 2
    flip_byte(path, middle)
    try:
        result = independent.run("restore", target, "--tablespace", str(oid), aside)
    finally:
        flip_byte(path, middle)
    assert result.returncode == REFUSED
    assert path.name in result.stderr
    assert not (target / "global/pg_control").exists()


def test_refuses_keys_of_another_repository(independent: ReaderLab) -> None:
    other = independent.workspace.directory("other")
    config = other / "config.yml"
    config.write_text(f"repository: {{locations: {{local: {{type: posix, path: {other}/r}}}}, keys: {other}/keys}}\n")
    independent.workspace.account.own(config)
    independent.workspace.run([independent.story.lab.runtime, "--config", config, "init"])
    result = independent.run("list", keys=other / "keys")
    assert result.returncode == REFUSED
    assert "a key of the repository" in result.stderr


@pytest.mark.parametrize(
    ("file", "role", "said"),
    [("catalog.key", "catalog", "a wrong catalog key"), ("data.identity", "identity", "a wrong identity")],
)
def test_refuses_a_wrong_key_of_this_repository(independent: ReaderLab, file: str, role: str, said: str) -> None:
    """The name of the repository is on the line, but it is not its key."""
    keys = copy_of_keys(independent, f"wrong-{role}")
    line = next(line for line in (keys / file).read_text().splitlines() if line.startswith("cryo-"))
    kind, repository, epoch, text, _unused = line.split(" ")
    key = base64.b64decode(text)
    words = " ".join([kind, repository, epoch, base64.b64encode(key[:-1] + bytes([key[-1] ^ 1])).decode()])
    (keys / file).write_text(f"{words} {hashlib.sha256(words.encode()).hexdigest()[:8]}\n")
    result = independent.run("list", keys=keys)
    assert result.returncode == REFUSED
    assert said in result.stderr
    assert text not in result.stderr


def test_refuses_a_mistyped_key_and_one_that_others_can_read(independent: ReaderLab) -> None:
    keys = copy_of_keys(independent, "careless")
    secret = keys / "catalog.key"
    text = secret.read_text()
    secret.write_text(text.replace(" 1 ", " 2 ", 1))
    assert "a mistyped key" in independent.run("list", keys=keys).stderr
    secret.write_text(text)
    secret.chmod(0o640)
    result = independent.run("list", keys=keys)
    assert result.returncode == REFUSED
    assert "can be read by others" in result.stderr


def copy_of_keys(independent: ReaderLab, name: str) -> Path:
    keys = independent.workspace.directory(name)
    for file in independent.keys.iterdir():
        shutil.copy(file, keys / file.name)
    return independent.workspace.account.own(keys, recursive=True)
