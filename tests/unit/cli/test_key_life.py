# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup key`` for the life of keys: rotation, recipients, passphrases, exports, as careless people use it."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest

from .conftest import COMMAND, Cli

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def made(cli: Cli) -> Cli:
    """A repository in two locations."""
    cli.write_config("one", "two")
    assert cli("init").code == 0
    return cli


def secret_file(cli: Cli, name: str, text: str, mode: int = 0o600) -> str:
    path = cli.place / name
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def passphrase(cli: Cli, text: str = PASSPHRASE) -> str:
    return secret_file(cli, f"passphrase-{len(text)}", f"{text}\n")


def secrets(cli: Cli) -> list[str]:
    """Key material that must show nowhere."""
    found = [PASSPHRASE]
    for path in [*cli.place.rglob("catalog.key"), *cli.place.rglob("data.identity"), *cli.place.rglob("*.key")]:
        lines = [line for line in path.read_text().splitlines() if line.startswith("cryo-")]
        found += [line.split()[-2][at : at + 20] for line in lines for at in (0, 20)]
    return found


def test_the_life_of_keys_tells_no_secret(made: Cli) -> None:
    words = passphrase(made)
    results = [
        made("--json", *command)
        for command in (
            ["key", "recipient", "new", "alice"],
            ["key", "recipient", "add", "alice", "--key", "alice.pub"],
            ["key", "recipient", "add", "safe", "--passphrase-file", words],
            ["key", "recipient", "list"],
            ["key", "rotate"],
            ["key", "show"],
            ["key", "kit", "--output", "kit"],
            ["key", "export", "--writer", "writer"],
            ["key", "import", "writer", "--directory", "elsewhere"],
            ["key", "protect", "--passphrase-file", words],
            ["key", "show"],
            ["key", "unlock", "--passphrase-file", words],
            [
                "key",
                "recipient",
                "passphrase",
                "safe",
                "--passphrase-file",
                passphrase(made, "quite another passphrase"),
            ],
            ["key", "recipient", "remove", "alice"],
            ["key", "rotate"],
        )
    ]
    assert [result.code for result in results] == [0] * len(results), [result.err for result in results]
    everything = "".join(result.out + result.err for result in results)
    for secret in secrets(made):
        assert secret not in everything
    assert results[4].json["epoch"] == 2
    assert {each["name"] for each in results[4].json["recipients"]} == {"alice", "safe"}
    assert [each["name"] for each in results[-1].json["recipients"]] == ["safe"]
    assert results[10].json["locked_epochs"] == [1, 2]
    assert results[10].json["has_identity"] is False


def test_back_from_nothing_with_a_passphrase(made: Cli) -> None:
    words = passphrase(made)
    made("key", "recipient", "add", "safe", "--passphrase-file", words)
    made("key", "rotate")
    made.keys.rename(made.place / "before")
    wrong = passphrase(made, "correct horse battery stable!")
    result = made("--json", "key", "recover", "safe", "--passphrase-file", wrong)
    assert result.error["id"] == "wrong-passphrase"
    assert not made.keys.exists()
    result = made("--json", "key", "recover", "safe", "--passphrase-file", words)
    assert result.code == 0
    assert result.json["fingerprint_compared"] is True
    assert result.err == ""
    for path in (made.place / "before").iterdir():
        assert (made.keys / path.name).read_text() == path.read_text()
    again = made("--json", "key", "recover", "safe", "--passphrase-file", words)
    assert again.json["changed"] is False


def test_back_from_nothing_with_a_key_file(made: Cli) -> None:
    made("key", "recipient", "new", "alice", "--output", "a.key")
    added = made("--json", "key", "recipient", "add", "alice", "--key", "a.pub").json
    made.keys.rename(made.place / "before")
    result = made("--json", "key", "recover", "alice", "--key", "a.key")
    assert result.code == 0
    assert result.json["fingerprint_compared"] is False
    assert added["repository_fingerprint"] in result.err, "who noted nothing is told what to compare"
    options = ["--fingerprint", added["repository_fingerprint"], "--without-identity"]
    made.keys.rename(made.place / "first")
    result = made("--json", "key", "recover", "alice", "--key", "a.key", *options)
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in made.keys.iterdir()) == ["catalog.key", "data.pub"]
    options[1] = "0" * 32
    assert made("--json", "key", "recover", "alice", "--key", "a.key", *options).error["id"] == "wrong-key"


@pytest.mark.parametrize(
    ("text", "mode", "id"),
    [
        (PASSPHRASE, 0o640, "key-file-mode"),
        (PASSPHRASE, 0o604, "key-file-mode"),
        (f"{PASSPHRASE}\nmore\n", 0o600, "key-file"),
        ("", 0o600, "key-file"),
        ("\n", 0o600, "key-file"),
        ("hunter2\n", 0o600, "passphrase-weak"),
    ],
)
def test_files_that_hold_no_good_passphrase(made: Cli, text: str, mode: int, id: str) -> None:
    path = secret_file(made, "words", text, mode)
    for action in (["recipient", "add", "safe"], ["protect"]):
        result = made("--json", "key", *action, "--passphrase-file", path)
        assert result.error["id"] == id
        assert "hunter2" not in result.err
    assert not (made.place / "one/wraps").exists()
    assert (made.keys / "data.identity").exists()


def test_a_passphrase_is_no_argument_and_no_variable(made: Cli) -> None:
    for words in (["--passphrase", PASSPHRASE], [PASSPHRASE], [f"--passphrase={PASSPHRASE}"]):
        assert made("--json", "key", "recipient", "add", "safe", *words).code == 2
    environment = dict.fromkeys(("PASSPHRASE", "CRYOBACKUP_PASSPHRASE", "CRYO_PASSPHRASE"), PASSPHRASE)
    result = made("--json", "key", "recipient", "add", "safe", env=environment, start_new_session=True)
    assert result.code == 2
    assert "no terminal" in result.error["message"]
    assert "--passphrase-file" in result.error["hint"]


def test_a_passphrase_typed_on_a_terminal(made: Cli) -> None:
    assert typed(made, ["key", "recipient", "add", "safe"], [PASSPHRASE, PASSPHRASE]) == 0
    assert typed(made, ["key", "recipient", "add", "other"], [PASSPHRASE, f"{PASSPHRASE}!"]) == 1
    made.keys.rename(made.place / "before")
    assert typed(made, ["key", "recover", "safe"], [PASSPHRASE]) == 0
    assert (made.keys / "data.identity").read_text() == (made.place / "before/data.identity").read_text()
    assert not (made.place / "one/wraps/other").exists()


def typed(cli: Cli, words: list[str], lines: list[str]) -> int:
    """Run a command on a terminal of its own and answer its questions. What is typed must not show."""
    master, slave = pty.openpty()
    command = ["setsid", "--ctty", "--wait", str(COMMAND), *words]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=cli.environment, cwd=cli.place)
    os.close(slave)
    shown = bytearray()
    asked = threading.Semaphore(0)

    def read() -> None:
        while True:
            try:
                part = os.read(master, 1024)
            except OSError:
                return
            if not part:
                return
            shown.extend(part)
            for _unused in range(part.count(b": ")):
                asked.release()

    thread = threading.Thread(target=read)
    thread.start()
    for line in lines:
        assert asked.acquire(timeout=30), bytes(shown)
        os.write(master, f"{line}\n".encode())
    code = process.wait(timeout=60)
    thread.join(timeout=30)
    os.close(master)
    for line in lines:
        assert line.encode() not in shown
    return code


def test_two_rotations_at_once(made: Cli) -> None:
    runs = [made.start("--json", "key", "rotate") for _unused in range(3)]
    for run in runs:
        run.communicate(timeout=60)
    codes = sorted(run.returncode for run in runs)
    epochs = {key["epoch"] for key in made("--json", "key", "show").json["keys"]}
    assert codes[0] == 0
    assert max(epochs) == 1 + codes.count(0), "each that succeeded made one epoch, the others none"
    assert sorted(path.name for path in made.keys.iterdir()) == ["catalog.key", "data.identity", "data.pub"]


@pytest.mark.parametrize("name", ["catalog.key", "data.identity"])
def test_group_readable_files(made: Cli, name: str) -> None:
    (made.keys / name).chmod(0o440)
    for action in (["rotate"], ["recipient", "list"], ["export", "--writer", "w"], ["protect"]):
        result = made("--json", "key", *action)
        assert result.error["id"] == "key-file-mode"
    assert not (made.place / "w").exists()


def test_keys_of_another_repository(made: Cli) -> None:
    made("key", "create", "--directory", "foreign")
    before = {path.name: path.read_text() for path in made.keys.iterdir()}
    for source in ("foreign", "foreign/catalog.key"):
        assert made("--json", "key", "import", source).error["id"] == "key-conflict"
    assert {path.name: path.read_text() for path in made.keys.iterdir()} == before
    made.keys.rename(made.place / "kept")
    (made.place / "foreign").rename(made.keys)
    assert made("--json", "key", "rotate").error["id"] == "foreign-repository"
    assert sorted(path.name for path in made.keys.iterdir()) == ["catalog.key", "data.identity", "data.pub"]


def test_a_new_epoch_reaches_a_writer(made: Cli) -> None:
    made("key", "export", "--writer", "first")
    assert made("--json", "key", "import", "first", "--directory", "host").json["changed"] is True
    made("key", "rotate")
    made("key", "export", "--writer", "second")
    assert made("--json", "key", "import", "second", "--directory", "host").json["changed"] is True
    assert made("--json", "key", "import", "second", "--directory", "host").json["changed"] is False
    shown = made("--json", "key", "show", "--directory", "host").json
    assert {(key["role"], key["epoch"]) for key in shown["keys"]} == {
        ("catalog", 1),
        ("catalog", 2),
        ("public", 1),
        ("public", 2),
    }
    assert made("--json", "key", "export", "--writer", "second").code == 1
    assert made("--json", "key", "export", "--writer", "third", "--from-epoch", "9").error["id"] == "no-epoch-key"


def test_a_new_epoch_reaches_a_reader_by_its_kit(made: Cli) -> None:
    made("key", "kit", "--output", "old")
    made("key", "import", "old", "--directory", "reader")
    made("key", "rotate")
    made("key", "kit", "--output", "new")
    assert made("--json", "key", "import", "new", "--directory", "reader").json["changed"] is True
    for name in ("catalog.key", "data.identity", "data.pub"):
        assert (made.place / "reader" / name).read_text() == (made.keys / name).read_text()


def test_files_of_recipients(made: Cli) -> None:
    assert made("key", "recipient", "new", "alice").code == 0
    secret, public = made.place / "alice.key", made.place / "alice.pub"
    assert (secret.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o400, 0o444)
    assert made("--json", "key", "recipient", "new", "alice").error["id"] == "output-exists"
    assert "ends with .pub" in made("--json", "key", "recipient", "add", "alice", "--key", "alice.key").error["hint"]
    assert "the secret one" in made("--json", "key", "recover", "alice", "--key", "alice.pub").error["hint"]
    assert made("--json", "key", "recipient", "add", "bob", "--key", "alice.pub").error["id"] == "recipient-name"
    for name in ("../alice", "Alice", "a b", "", "-x", "a" * 64):
        result = made("--json", "key", "recipient", "new", "--", name)
        assert result.error["id"] == "recipient-name"
    assert not Path(made.place.parent / "alice.key").exists()
    assert made("--json", "key", "recipient", "add", "alice", "--key", "nowhere.pub").error["id"] == "key-file"


def test_an_interrupted_rotation_shows(made: Cli) -> None:
    (made.place / "one").rename(made.place / "away")
    assert made("--json", "key", "rotate").code == 1
    assert "finishes it" not in made("key", "show").out, "nothing was begun"
    (made.place / "away").rename(made.place / "one")
    made("key", "rotate")
    staged = made.keys / "rotation.keys"
    lines = [path.read_text().splitlines()[-1] for path in made.keys.iterdir()]
    staged.write_text("\n".join([*lines, ""]))
    staged.chmod(0o400)
    assert "`cryobackup key rotate` finishes it" in made("key", "show").out
    assert made("--json", "key", "rotate").json["resumed"] is True
    assert not staged.exists()
    assert made("--json", "key", "show").json["keys"][-1]["epoch"] == 2
