# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration is understood as it is meant, and every mistake in it is found and named at once."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import textwrap
import zoneinfo
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryobackup import config as cfg
from cryobackup.config.locations import S3Options
from cryobackup.errors import ConfigError

MINIMAL = """\
repository:
  locations:
    local: {type: posix, path: /backup/repository}
  keys: /etc/cryobackup/keys
"""

# The example of the documentation.
FULL = """\
repository:
  locations:
    local: {type: posix, path: /var/lib/cryobackup/repository}
    cloud: {type: s3, bucket: acme-backups, prefix: db1, region: eu-central-1, endpoint_url: null,
            credentials_file: /etc/cryobackup/s3.ini, required: false}
  keys: /etc/cryobackup/keys
  compression_level: 3
clusters:
  main:
    data_directory: /var/lib/postgresql/17/main
    connection: host=/var/run/postgresql port=5432 user=postgres dbname=postgres
file_sets:
  uploads: {paths: [/srv/app/uploads], exclude: ["*.tmp"]}
  config:  {paths: [/etc/app], history: git}
retention:
  full: {keep_within: 30d}
  incremental: {keep_within: 7d}
  files: {keep_within: 30d, keep_monthly: 12}
  minimum: 2
notifications: {urls_file: /etc/cryobackup/notify.urls}
metrics: {textfile: /var/lib/prometheus/node-exporter/cryobackup.prom}
state_directory: /var/lib/cryobackup/state
"""

CLUSTER = "clusters:\n  main:\n    data_directory: /pg\n    connection: dbname=postgres\n"

Load = Callable[[str], cfg.Config]
Problems = Callable[[str], list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> cfg.Config:
        path = tmp_path / "config.yml"
        path.write_text(text)
        return cfg.load_config(path)

    return load


@pytest.fixture
def problems(load: Load) -> Problems:
    """The problems of a text, without the line numbers, in the order of the lines."""

    def problems(text: str) -> list[str]:
        with pytest.raises(cfg.InvalidConfig) as caught:
            load(text)
        for problem in caught.value.problems:
            assert str(problem) in caught.value.message
        return [f"{problem.place}: {problem.text}" for problem in caught.value.problems]

    return problems


def test_documented_example(load: Load) -> None:
    config = load(FULL)
    assert list(config.repository.locations) == ["local", "cloud"]
    local, cloud = config.repository.locations.values()
    assert (local.type, local.path, local.required) == ("posix", Path("/var/lib/cryobackup/repository"), True)
    assert (cloud.type, cloud.path, cloud.required) == ("s3", None, False)
    assert cloud.s3 == S3Options(
        bucket="acme-backups",
        prefix="db1",
        region="eu-central-1",
        credentials_file=Path("/etc/cryobackup/s3.ini"),
    )
    assert config.repository.keys == Path("/etc/cryobackup/keys")
    assert config.repository.compression_level == 3
    main = config.cluster("main")
    assert main.data_directory == Path("/var/lib/postgresql/17/main")
    assert main.connection == "host=/var/run/postgresql port=5432 user=postgres dbname=postgres"
    assert config.file_sets["uploads"].paths == (Path("/srv/app/uploads"),)
    assert config.file_sets["uploads"].exclude == ("*.tmp",)
    assert config.file_sets["config"].history == "git"
    assert config.retention.rules["files"].keep_monthly == 12
    assert config.retention.rules["incremental"].keep_within == dt.timedelta(days=7)
    assert config.retention.minimum == 2
    assert config.notifications.urls_file == Path("/etc/cryobackup/notify.urls")
    assert config.metrics.textfile == Path("/var/lib/prometheus/node-exporter/cryobackup.prom")
    assert config.state_directory == Path("/var/lib/cryobackup/state")
    assert config.sources == ("main", "uploads", "config")


def test_defaults(load: Load) -> None:
    config = load(MINIMAL + CLUSTER)
    main = config.cluster("main")
    assert 1 <= main.workers <= 8
    assert main.bandwidth_limit is None
    assert main.bin_directory is None
    assert main.archive_timeout == 300.0
    assert main.verify.assertions == ()
    assert config.retention.rules == {}
    assert config.notifications.urls_file is None
    assert config.metrics.textfile is None
    assert config.state_directory == cfg.DEFAULT_STATE_DIRECTORY


def test_every_key_of_a_cluster(load: Load) -> None:
    config = load(
        MINIMAL
        + CLUSTER
        + textwrap.indent(
            textwrap.dedent("""\
            workers: 3
            bandwidth_limit: 50MB/s
            bin_directory: /usr/lib/postgresql/17/bin
            archive_timeout: 10min
            verify:
              assertions:
                - {database: app, query: select count(*) from users, expect: 12}
                - {database: app, query: select true, expect: true}
                - database: app
                  query: |
                    select 1
                    from users
            """),
            "    ",
        )
    )
    main = config.cluster("main")
    assert main.workers == 3
    assert main.bandwidth_limit == 50 << 20
    assert main.bin_directory == Path("/usr/lib/postgresql/17/bin")
    assert main.archive_timeout == 600.0
    assert main.verify.assertions == (
        cfg.Assertion("app", "select count(*) from users", "12"),
        cfg.Assertion("app", "select true", "t"),
        cfg.Assertion("app", "select 1\nfrom users\n", None),
    )


def test_retention_settings(load: Load) -> None:
    policy = load(
        MINIMAL
        + "retention:\n  timezone: Europe/Berlin\n  max_delete_share: 1\n  minimum: 0\n"
        + "  full: {keep_last: 3, keep_hourly: 1, keep_daily: 2, keep_weekly: 4, keep_quarterly: 5, keep_yearly: 6}\n"
        + "  logical: {keep_within: 1y6m}\n"
    ).retention
    assert policy.timezone == zoneinfo.ZoneInfo("Europe/Berlin")
    assert (policy.max_delete_share, policy.minimum) == (1, 0)
    full = policy.rules["full"]
    assert (full.keep_last, full.keep_hourly, full.keep_daily, full.keep_weekly) == (3, 1, 2, 4)
    assert (full.keep_quarterly, full.keep_yearly, full.keep_within) == (5, 6, None)
    assert policy.rules["logical"].keep_within == dt.timedelta(days=365 + 180)


def test_all_mistakes_in_one_report(load: Load) -> None:
    text = textwrap.dedent("""\
        repository:
          locatoins: {}
          locations:
            a: {type: posic, path: /x, bucket: y}
            b: {type: posix, path: relative/path}
            c: {type: posix}
          keys: 7
          compression_level: 99
        clusters:
          main:
            data_directory: /pg
            data_directory: /pg2
            conection: host=x
            workers: many
          Main: {data_directory: /pg3, connection: host=x}
        file_sets:
          main: {paths: []}
        retension: {}
        """)
    with pytest.raises(cfg.InvalidConfig) as caught:
        load(text)
    found = [(problem.line, problem.place) for problem in caught.value.problems]
    assert found == [
        (2, "repository.locatoins"),
        (4, "repository.locations.a.type"),
        (5, "repository.locations.b.path"),
        (6, "repository.locations.c.path"),
        (7, "repository.keys"),
        (8, "repository.compression_level"),
        (10, "clusters.main.connection"),
        (12, "clusters.main.data_directory"),
        (13, "clusters.main.conection"),
        (14, "clusters.main.workers"),
        (15, "clusters.Main"),
        (17, "file_sets.main"),
        (17, "file_sets.main.paths"),
        (18, "retension"),
    ]
    message = caught.value.message
    assert "has 14 problems" in message
    assert "line 2, repository.locatoins: unknown key: did you mean locations?" in message
    assert "line 13, clusters.main.conection: unknown key: did you mean connection?" in message
    assert "line 12, clusters.main.data_directory: stands in line 11 already" in message
    assert "line 18, retension: unknown key: did you mean retention?" in message
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_one_mistake_is_one_line(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"config\.yml, line 4, repository\.keys: must be an absolute path"):
        load(MINIMAL.replace("/etc/cryobackup/keys", "keys"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("keys: /etc/cryobackup/keys", "keys:", "repository.keys: is empty"),
        ("keys: /etc/cryobackup/keys", "kees: /x", "repository.keys: is missing"),
        ("/etc/cryobackup/keys", "~/keys", "repository.keys: must be an absolute path"),
        ("/etc/cryobackup/keys", "/etc/../keys", "repository.keys: must not have .. in it"),
        ("/etc/cryobackup/keys", "[/etc]", "repository.keys: must be text, not a list"),
        ("/etc/cryobackup/keys", "'  '", "repository.keys: is empty"),
        ("/etc/cryobackup/keys", '"/etc/\\0keys"', "repository.keys: has control characters"),
        ("/etc/cryobackup/keys", "2026-11-23", "repository.keys: must be text, not a date"),
        ("type: posix", "type: [posix]", "repository.locations.local.type: must be posix or s3"),
        ("type: posix, ", "", "repository.locations.local.type: is missing"),
        ("type: posix", "type: posix, required: 'yes'", "local.required: must be true or false, not text"),
        ("type: posix", "type: posix, required: no", "must be required: WAL would count as archived"),
        ("type: posix", "type: posix, bucket: x", "repository.locations.local.bucket: unknown key"),
        ("local: {type: posix, path: /backup/repository}", "{}", "there must be at least one location"),
        ("local: {type: posix, path: /backup/repository}", "local:", "repository.locations.local: is empty"),
        ("local: {", "_local: {", "repository.locations._local: is not a name"),
        ("local: {", "lo.cal: {", "repository.locations.lo.cal: is not a name"),
        ("local: {", f"{'l' * 64}: {{", "is not a name"),
        ("local: {", "no: {", "the key was read as the truth value false: put it in quotes"),
        ("local: {", "17: {", "repository.locations.17: the key was read as a number: put it in quotes"),
        ("/backup/repository", "/etc/cryobackup", "repository.keys: must not be in a location"),
    ],
)
def test_mistake_in_the_repository(problems: Problems, old: str, new: str, problem: str) -> None:
    assert old in MINIMAL
    assert any(problem in each for each in problems(MINIMAL.replace(old, new)))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("workers: 0", "clusters.main.workers: must be from 1 to 64, not 0"),
        ("workers: 2.5", "clusters.main.workers: must be a whole number, not a number"),
        ("workers: yes", "clusters.main.workers: must be a whole number, not the truth value true"),
        ("bandwidth_limit: 50Mbit/s", "clusters.main.bandwidth_limit: must be bytes a second with a unit"),
        ("bandwidth_limit: 50Mb/s", "clusters.main.bandwidth_limit: must be bytes a second with a unit"),
        ("bandwidth_limit: -1", "clusters.main.bandwidth_limit: -1 bytes a second is next to nothing"),
        ("bandwidth_limit: 50", "clusters.main.bandwidth_limit: 50 bytes a second is next to nothing"),
        ("bandwidth_limit: true", "clusters.main.bandwidth_limit: must be bytes a second with a unit"),
        ("archive_timeout: soon", "clusters.main.archive_timeout: must be a duration"),
        ("archive_timeout: 5m", "clusters.main.archive_timeout: must be a duration"),
        ("verify: {assertions: {}}", "clusters.main.verify.assertions: must be a list, not a mapping"),
        ("verify: {assertions: [x]}", "clusters.main.verify.assertions[1]: must be a mapping, not text"),
        ("verify: {assertions: [{database: x}]}", "clusters.main.verify.assertions[1].query: is missing"),
        ("verify: {assert: []}", "clusters.main.verify.assert: unknown key: did you mean assertions?"),
        ("bin_directory: bin", "clusters.main.bin_directory: must be an absolute path"),
        ("data_directory: /pg", "clusters.main.data_directory: stands in line 7 already"),
        ("databases: [x]", "clusters.main.databases: unknown key"),
    ],
)
def test_mistake_in_a_cluster(problems: Problems, line: str, problem: str) -> None:
    found = problems(f"{MINIMAL}{CLUSTER}    {line}\n")
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("full: {}", "retention.full: the rule keeps nothing"),
        ("full: 30d", "retention.full: must be a mapping of keys and values, not text"),
        ("full: {keep_within: 30 days}", "retention.full.keep_within: '30 days' is not a duration"),
        ("full: {keep_within: 30}", "retention.full.keep_within: 30 is not a duration"),
        ("full: {keep_monthly: -1}", "retention.full.keep_monthly: must be at least 0, not -1"),
        ("full: {keep_weakly: 1, keep_last: 1}", "retention.full.keep_weakly: unknown key: did you mean keep_weekly?"),
        ("incrementals: {keep_last: 1}", "retention.incrementals: unknown key: did you mean incremental?"),
        ("minimum: two", "retention.minimum: 'two' is not a number of backups"),
        ("max_delete_share: 50", "retention.max_delete_share: 50 is not a number from 0 to 1"),
        ("max_delete_share: .nan", "retention.max_delete_share: nan is not a number from 0 to 1"),
        ("timezone: Mars/Olympus", "retention.timezone: this host does not know a time zone"),
        ("timezone: ../../etc/passwd", "retention.timezone: this host does not know a time zone"),
    ],
)
def test_mistake_in_retention(problems: Problems, text: str, problem: str) -> None:
    found = problems(f"{MINIMAL}retention:\n  {text}\n")
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file_sets: {a: {}}", "file_sets.a.paths: is missing"),
        ("file_sets: {a: {paths: /srv}}", "file_sets.a.paths: must be a list, not text"),
        ("file_sets: {a: {paths: [srv]}}", "file_sets.a.paths: must be an absolute path"),
        ("file_sets: {a: {paths: [/srv], exclude: [1]}}", "file_sets.a.exclude: must be a list of texts"),
        ("file_sets: {a: {paths: [/srv], history: svn}}", "file_sets.a.history: must be git"),
        ("notifications: {urls: x}", "notifications.urls: unknown key: did you mean urls_file?"),
        ("metrics: {textfile: x.prom}", "metrics.textfile: must be an absolute path"),
        ("state_directory: state", "state_directory: must be an absolute path"),
        ("clusters: [main]", "clusters: must be a mapping of keys and values, not a list"),
    ],
)
def test_mistake_elsewhere(problems: Problems, text: str, problem: str) -> None:
    found = problems(f"{MINIMAL}{text}\n")
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    "connection",
    [
        "host=x password=hunter2",
        "host=x password = 'hunter2'",
        "password=hunter2",
        "host=x sslpassword=hunter2",
        "host=x PASSWORD=hunter2",
        "postgresql://app:hunter2@db.example/app",
        "postgres://app:hunter2@one,two:5433/app?sslmode=verify-full",
        "postgresql://db.example/app?user=app&password=hunter2",
        "host=x scram_client_key=hunter2",
    ],
)
def test_secret_in_a_connection(load: Load, connection: str) -> None:
    text = MINIMAL + f"clusters:\n  main:\n    data_directory: /pg\n    connection: {connection!r}\n"
    text = text.replace('"', "'") if connection.count("'") == 0 else text
    with pytest.raises(cfg.InvalidConfig) as caught:
        load(text)
    [problem] = caught.value.problems
    assert problem.place == "clusters.main.connection"
    assert "passfile=" in problem.text
    assert "service=" in problem.text
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "connection",
    [
        "host=x passfile=/etc/cryobackup/pgpass",
        "service=main",
        "postgresql://app@db.example:5433/app?sslmode=verify-full",
        "postgresql://one:5433,two:5433/app",
        "host=x sslkey=/etc/cryobackup/client.key sslcert=/etc/cryobackup/client.crt",
    ],
)
def test_connection_without_a_secret(load: Load, connection: str) -> None:
    text = MINIMAL + f"clusters:\n  main:\n    data_directory: /pg\n    connection: '{connection}'\n"
    assert load(text).cluster("main").connection == connection


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("    cloud: {type: s3, bucket: b, secret_key: hunter2}", "repository.locations.cloud.secret_key"),
        ("    cloud: {type: s3, bucket: b, aws_secret_access_key: hunter2}", "repository.locations.cloud"),
        ("    cloud: {type: s3, bucket: b, endpoint_url: 'https://u:hunter2@s3.example'}", "repository.locations"),
        ("  passphrase: hunter2", "repository.passphrase"),
    ],
)
def test_secret_elsewhere(load: Load, text: str, place: str) -> None:
    with pytest.raises(cfg.InvalidConfig) as caught:
        load(MINIMAL.replace("  keys:", f"{text}\n  keys:"))
    [problem] = caught.value.problems
    assert problem.place.startswith(place)
    assert "must not" in problem.text
    assert "hunter2" not in str(caught.value)


def test_directories_that_must_be_apart(problems: Problems) -> None:
    found = problems(
        textwrap.dedent("""\
        repository:
          locations:
            one: {type: posix, path: /backup}
            two: {type: posix, path: /backup/two}
            three: {type: posix, path: /pg/main/backup}
            four: {type: posix, path: /backup-of-something-else}
          keys: /backup/keys
        clusters:
          main: {data_directory: /pg/main, connection: host=x}
          again: {data_directory: /pg/main, connection: host=y}
        """)
    )
    assert found == [
        "repository.locations.two.path: must not share a directory with repository.locations.one.path",
        "repository.locations.three.path: must not share a directory with clusters.again.data_directory",
        "repository.locations.three.path: must not share a directory with clusters.main.data_directory",
        "repository.keys: must not be in a location: whoever gets the one would have the other too",
        "clusters.again.data_directory: is the same directory as clusters.main.data_directory",
    ]


@pytest.mark.parametrize(
    ("text", "bytes_a_second"),
    [
        ("1048576", 1 << 20),
        ("50MB/s", 50 << 20),
        ("50 MB/s", 50 << 20),
        ("50MB", 50 << 20),
        ("50MiB/s", 50 << 20),
        ("1.5GB/s", 3 << 29),
        ("512kB/s", 512 << 10),
    ],
)
def test_bandwidth(load: Load, text: str, bytes_a_second: int) -> None:
    assert load(f"{MINIMAL}{CLUSTER}    bandwidth_limit: {text}\n").cluster("main").bandwidth_limit == bytes_a_second


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("5min", 300.0), ("2 h", 7200.0)]
)
def test_archive_timeout(load: Load, text: str, seconds: float) -> None:
    assert load(f"{MINIMAL}{CLUSTER}    archive_timeout: {text}\n").cluster("main").archive_timeout == seconds


def test_anchors_and_merge_keys(load: Load) -> None:
    config = load(
        MINIMAL
        + textwrap.dedent("""\
        clusters:
          one: &one {data_directory: /pg/1, connection: host=one, workers: 3}
          two:
            <<: *one
            data_directory: /pg/2
        """)
    )
    assert config.cluster("two").data_directory == Path("/pg/2")
    assert config.cluster("two").workers == 3


def test_unknown_cluster_names_the_known(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL + CLUSTER).cluster("mian")
    assert caught.value.id == "unknown-cluster"
    assert "main" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "id", "message"),
    [
        ("", "config-invalid", "is empty"),
        ("# nothing\n", "config-invalid", "is empty"),
        ("- a\n", "config-invalid", "is not a mapping"),
        ("just text", "config-invalid", "is not a mapping"),
        ("a: [1\n", "config-syntax", "line 2, column 1: this is not YAML"),
        ("a: b: hunter2\n", "config-syntax", "line 1, column 5"),
        ("a:\n\t- b\n", "config-syntax", "line 2"),
        ("{}\n---\n{}\n", "config-syntax", "line 2"),
        ("a: !vault hunter2\n", "config-syntax", "line 1, column 4"),
        ("[a]: b\n", "config-syntax", "line 1"),
        ("a: *hunter2\n", "config-syntax", "line 1"),
        ("a: !hunter2\n", "config-syntax", "line 1"),
        ("a: hunter2\n b: hunter2\n", "config-syntax", "line 2"),
        ('a: "hunter2\\q"\n', "config-syntax", "line 1"),
        ("%hunter2\na: b\n", "config-syntax", "line"),
        ("a: @hunter2\n", "config-syntax", "line 1"),
        ("a: 2026-02-31\n", "config-syntax", "cannot be read"),
        ("a: " + "[" * 10_000, "config-syntax", "this is not YAML"),
        ("a: \x00\n", "config-syntax", "not allowed"),
        ("a: !!python/object/apply:os.system ['true']\n", "config-syntax", "line 1"),
    ],
)
def test_not_a_configuration(load: Load, text: str, id: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert caught.value.id == id
    assert message in caught.value.message
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        cfg.load_config(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        cfg.load_config(tmp_path / "nowhere.yml")
    assert caught.value.id == "config-missing"
    assert str(tmp_path / "nowhere.yml") in caught.value.message
    assert "--config" in caught.value.hint


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_than_a_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "config.yml")
    with pytest.raises(ConfigError) as caught:
        cfg.load_config(tmp_path / "config.yml")
    assert caught.value.exit_code == 2


def test_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.touch()
    os.truncate(path, 1 << 30)
    with pytest.raises(ConfigError, match="this is not a configuration"):
        cfg.load_config(path)


def test_file_that_anybody_may_write(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(MINIMAL)
    path.chmod(0o646)
    with pytest.raises(ConfigError) as caught:
        cfg.load_config(path)
    assert caught.value.id == "config-mode"


def test_where_the_configuration_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cfg.ENVIRONMENT_VARIABLE, raising=False)
    assert cfg.default_config_path() == Path("/etc/cryobackup/config.yml")
    monkeypatch.setenv(cfg.ENVIRONMENT_VARIABLE, "")
    assert cfg.default_config_path() == Path("/etc/cryobackup/config.yml")
    monkeypatch.setenv(cfg.ENVIRONMENT_VARIABLE, "/srv/other.yml")
    assert cfg.default_config_path() == Path("/srv/other.yml")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_written_there(load: Load, data: st.DataObject) -> None:
    """Any value in any place is taken or refused by a ConfigError: never by an accident."""
    values = st.sampled_from(
        [
            "",
            "x",
            "/x",
            "3",
            "-1",
            "true",
            "null",
            "[]",
            "[1, x]",
            "{}",
            "{a: b}",
            "2026-01-01",
            "1.5",
            "'y'",
            "~",
            "[{}]",
        ]
    )
    lines = FULL.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    key, colon, _unused = lines[number].partition(": ")
    lines[number] = f"{key}{colon or ': '}{data.draw(values)}" if data.draw(st.booleans()) else ""
    with contextlib.suppress(ConfigError):
        load("\n".join(lines))
