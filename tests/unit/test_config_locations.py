# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every key of a location is understood, every mistake in one is named once, and what is doubtful is told."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from cryobackup import config as cfg
from cryobackup.config.advice import advice, longest_kept, shortest_kept
from cryobackup.config.locations import Encryption, LocationConfig, ObjectLock, Prices, S3Options, SftpOptions

MINIMAL = """\
repository:
  locations:
    local: {type: posix, path: /backup/repository}
  keys: /etc/cryobackup/keys
"""

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
    """The problems of a text, in the order of the lines."""

    def problems(text: str) -> list[str]:
        with pytest.raises(cfg.InvalidConfig) as caught:
            load(text)
        return [f"{problem.place}: {problem.text}" for problem in caught.value.problems]

    return problems


S3 = "cloud: {type: s3, bucket: b"
SFTP = "vault: {type: sftp, host: h, user: u, path: p, key_file: /k/id, known_hosts: /k/known"


def location(config: cfg.Config, name: str) -> LocationConfig:
    return config.repository.locations[name]


def with_locations(*lines: str) -> str:
    return MINIMAL.replace("  keys:", "".join(f"    {line}\n" for line in lines) + "  keys:")


def test_every_key_of_an_s3_location(load: Load) -> None:
    found = location(
        load(
            with_locations(
                "cloud:",
                "  type: s3",
                "  required: false",
                "  priority: 7",
                "  quota: 2TB",
                "  prices: {storage_gb_month: 0.02, put_1000: 0.005, get_1000: 0.0004, egress_gb: 0.09, currency: EUR}",
                "  bucket: acme-backups",
                "  prefix: /db1/main/",
                "  region: eu-central-1",
                "  endpoint_url: https://s3.example:9000",
                "  credentials_file: /etc/cryobackup/s3.ini",
                "  profile: backup",
                "  role_arn: arn:aws:iam::123456789012:role/backup",
                "  web_identity_token_file: /run/token",
                "  addressing: path",
                "  ca_file: /etc/ssl/own.pem",
                "  proxy: http://proxy.example:3128",
                "  encryption: {type: kms, key_id: alias/backup}",
                "  storage_class: STANDARD_IA",
                "  create_only: check",
                "  object_lock: {mode: compliance, retain: 2w}",
                "  timeout: 2min",
                "  attempts: 3",
            )
        ),
        "cloud",
    )
    assert found == LocationConfig(
        name="cloud",
        type="s3",
        required=False,
        s3=S3Options(
            bucket="acme-backups",
            prefix="db1/main",
            region="eu-central-1",
            endpoint_url="https://s3.example:9000",
            credentials_file=Path("/etc/cryobackup/s3.ini"),
            profile="backup",
            role_arn="arn:aws:iam::123456789012:role/backup",
            web_identity_token_file=Path("/run/token"),
            addressing="path",
            ca_file=Path("/etc/ssl/own.pem"),
            proxy="http://proxy.example:3128",
            encryption=Encryption(kms=True, key_id="alias/backup"),
            storage_class="STANDARD_IA",
            create_only="check",
            object_lock=ObjectLock("compliance", dt.timedelta(days=14)),
            timeout=120.0,
            attempts=3,
        ),
        priority=7,
        quota=2 << 40,
        prices=Prices(0.02, 0.005, 0.0004, 0.09, "EUR"),
    )
    assert found.where == "s3://acme-backups/db1/main"


def test_every_key_of_an_sftp_location(load: Load) -> None:
    found = location(
        load(
            with_locations(
                "vault:",
                "  type: sftp",
                "  host: vault.example",
                "  user: backup",
                "  path: /srv/backup/db1",
                "  key_file: /etc/cryobackup/id_ed25519",
                "  known_hosts: /etc/cryobackup/known_hosts",
                "  port: 2222",
                "  timeout: 30s",
            )
        ),
        "vault",
    )
    assert found.sftp == SftpOptions(
        host="vault.example",
        user="backup",
        path="/srv/backup/db1",
        key_file=Path("/etc/cryobackup/id_ed25519"),
        known_hosts=Path("/etc/cryobackup/known_hosts"),
        port=2222,
        timeout=30.0,
    )
    assert (found.required, found.quota, found.prices) == (True, None, Prices())
    assert found.where == "sftp://backup@vault.example:2222/srv/backup/db1"


def test_defaults_of_locations(load: Load) -> None:
    config = load(with_locations(S3 + "}", SFTP + "}"))
    assert list(config.repository.locations) == ["local", "vault", "cloud"], "the nearest is asked first"
    assert location(config, "cloud").s3 == S3Options("b")
    s3, sftp = S3Options("b"), SftpOptions("h", "u", "p", Path("/k/id"), Path("/k/known"))
    assert (s3.create_only, s3.addressing, s3.encryption, s3.object_lock) == ("conditional", "auto", None, None)
    assert location(config, "vault").sftp == sftp
    assert location(config, "cloud").where == "s3://b"


def test_priority_before_the_order_in_the_file(load: Load) -> None:
    config = load(with_locations(S3 + ", priority: 5}", SFTP + ", priority: 5}"))
    assert list(config.repository.locations) == ["cloud", "vault", "local"]


@pytest.mark.parametrize("kind", ["s3", "kms"])
def test_encryption_by_the_store(load: Load, kind: str) -> None:
    s3 = location(load(with_locations(f"{S3}, encryption: {{type: {kind}}}}}")), "cloud").s3
    assert s3 is not None
    assert s3.encryption == Encryption(kms=kind == "kms", key_id=None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("cloud: {type: s3}", "cloud.bucket: is missing"),
        ("cloud: {type: s3, bucket: 's3://b'}", "cloud.bucket: is not the name of a bucket: no s3:// before it"),
        ("cloud: {type: s3, bucket: b/prefix}", "cloud.bucket: is not the name of a bucket"),
        (S3 + ", path: /x}", "cloud.path: unknown key"),
        (S3 + ", prefix: 'a b'}", "cloud.prefix: must be words of letters"),
        (S3 + ", prefix: a/../b}", "cloud.prefix: must be words of letters"),
        (S3 + ", prefix: a//b}", "cloud.prefix: must be words of letters"),
        (S3 + ", endpoint_url: s3.example}", "cloud.endpoint_url: must begin with https://"),
        (S3 + ", proxy: 'socks5://x'}", "cloud.proxy: must begin with https://"),
        (S3 + ", proxy: 'http://u:hunter2@x'}", "cloud.proxy: must not have a user or a password in it"),
        (S3 + ", profile: x}", "cloud.profile: is a section of credentials_file, which is missing"),
        (S3 + ", credentials_file: s3.ini}", "cloud.credentials_file: must be an absolute path"),
        (S3 + ", credentials_file: /backup/repository/s3.ini}", "cloud.credentials_file: must not be in a location"),
        (S3 + ", role_arn: backup}", "cloud.role_arn: is not the ARN of a role"),
        (S3 + ", web_identity_token_file: /t}", "cloud.web_identity_token_file: needs role_arn"),
        (S3 + ", addressing: dns}", "cloud.addressing: must be auto or path or virtual"),
        (S3 + ", ca_file: own.pem}", "cloud.ca_file: must be an absolute path"),
        (S3 + ", encryption: kms}", "cloud.encryption: must be a mapping of keys and values, not text"),
        (S3 + ", encryption: {}}", "cloud.encryption.type: is missing"),
        (S3 + ", encryption: {type: aes}}", "cloud.encryption.type: must be s3 or kms"),
        (S3 + ", encryption: {type: s3, key_id: k}}", "cloud.encryption.key_id: belongs to type: kms"),
        (S3 + ", storage_class: DEEP_ARCHIVE}", "cloud.storage_class: DEEP_ARCHIVE takes hours"),
        (S3 + ", create_only: never}", "cloud.create_only: must be conditional or check"),
        (S3 + ", object_lock: {retain: 30d}}", "cloud.object_lock.mode: is missing"),
        (S3 + ", object_lock: {mode: compliance}}", "cloud.object_lock.retain: is missing"),
        (S3 + ", object_lock: {mode: legal, retain: 30d}}", "cloud.object_lock.mode: must be governance or compliance"),
        (S3 + ", object_lock: {mode: compliance, retain: 30}}", "cloud.object_lock.retain: must be text"),
        (S3 + ", object_lock: {mode: compliance, retain: 0d}}", "cloud.object_lock.retain: '0d' is not a duration"),
        (S3 + ", object_lock: {mode: compliance, days: 3, retain: 3d}}", "cloud.object_lock.days: unknown key"),
        (S3 + ", timeout: 0}", "cloud.timeout: must be at least 1 s"),
        (S3 + ", timeout: soon}", "cloud.timeout: must be a duration"),
        (S3 + ", attempts: 0}", "cloud.attempts: must be from 1 to 50, not 0"),
        (S3 + ", priority: 0}", "cloud.priority: must be from 1 to 1000, not 0"),
        (S3 + ", quota: 0}", "cloud.quota: must be bytes with a unit"),
        (S3 + ", quota: 500}", "cloud.quota: 500 bytes are next to nothing: write a unit"),
        (S3 + ", quota: 500gb}", "cloud.quota: must be bytes with a unit"),
        (S3 + ", quota: true}", "cloud.quota: must be bytes with a unit"),
        (S3 + ", prices: 0.02}", "cloud.prices: must be a mapping"),
        (S3 + ", prices: {storage: 1}}", "cloud.prices.storage: unknown key: did you mean storage_gb_month?"),
        (S3 + ", prices: {put_1000: -1}}", "cloud.prices.put_1000: must be a number that is not negative"),
        (S3 + ", prices: {put_1000: .nan}}", "cloud.prices.put_1000: must be a number that is not negative"),
        (S3 + ", prices: {get_1000: '1'}}", "cloud.prices.get_1000: must be a number, not text"),
        (S3 + ", prices: {egress_gb: yes}}", "cloud.prices.egress_gb: must be a number, not the truth value"),
        (S3 + ", prices: {currency: 1}}", "cloud.prices.currency: must be text"),
        (S3 + ", access_key: hunter2}", "cloud.access_key: secrets must not stand in this file"),
        (SFTP.replace("host: h, ", "") + "}", "vault.host: is missing"),
        (SFTP.replace("host: h", "host: u@h") + "}", "vault.host: must be a name or an address only"),
        (SFTP.replace("host: h", "host: 'sftp://h'") + "}", "vault.host: must be a name or an address only"),
        (SFTP.replace("user: u, ", "") + "}", "vault.user: is missing"),
        (SFTP.replace("path: p, ", "") + "}", "vault.path: is missing"),
        (SFTP.replace("path: p", "path: ~/p") + "}", "vault.path: must not begin with ~"),
        (SFTP.replace("path: p", "path: a/../p") + "}", "vault.path: must not have .. in it"),
        (SFTP.replace(", key_file: /k/id", "") + "}", "vault.key_file: is missing"),
        (SFTP.replace("/k/id", "/backup/repository/id") + "}", "vault.key_file: must not be in a location"),
        (SFTP.replace(", known_hosts: /k/known", "") + "}", "vault.known_hosts: is missing"),
        (SFTP + ", port: 70000}", "vault.port: must be from 1 to 65535, not 70000"),
        (SFTP + ", timeout: 0s}", "vault.timeout: must be at least 1 s"),
        (SFTP + ", password: hunter2}", "vault.password: secrets must not stand in this file"),
        (SFTP + ", bucket: b}", "vault.bucket: unknown key"),
    ],
)
def test_mistake_in_a_location(problems: Problems, line: str, problem: str) -> None:
    found = problems(with_locations(line))
    assert len(found) == 1
    assert found[0].startswith(f"repository.locations.{problem}")
    assert "hunter2" not in found[0]


@pytest.mark.parametrize("host", ["vault", "vault.example", "192.0.2.7", "2001:db8::7", "fe80::1%eth0"])
def test_hosts_of_sftp(load: Load, host: str) -> None:
    sftp = location(load(with_locations(SFTP.replace("host: h", f"host: '{host}'") + "}")), "vault").sftp
    assert sftp is not None
    assert sftp.host == host


@pytest.mark.parametrize(
    ("one", "other", "problem"),
    [
        ("{type: s3, bucket: b}", "{type: s3, bucket: b}", "two.bucket: must not be in the same bucket and prefix"),
        ("{type: s3, bucket: b}", "{type: s3, bucket: b, prefix: p}", "two.prefix: must not be in the same bucket"),
        ("{type: s3, bucket: b, prefix: p/q}", "{type: s3, bucket: b, prefix: p}", "two.prefix: must not be"),
        (
            "{type: s3, bucket: b, endpoint_url: 'https://S3.example/'}",
            "{type: s3, bucket: b, endpoint_url: 'https://s3.example'}",
            "two.bucket: must not be in the same bucket",
        ),
        (SFTP[7:] + "}", SFTP[7:] + ", port: 22}", "two.path: must not be in the same directory"),
        (SFTP[7:] + "}", SFTP[7:].replace("path: p", "path: p/q") + "}", "two.path: must not be in the same directory"),
        (
            SFTP[7:].replace("path: p", "path: /p") + "}",
            SFTP[7:].replace("path: p", "path: /p/q").replace("user: u", "user: v") + "}",
            "two.path: must not be in the same directory",
        ),
    ],
)
def test_two_locations_in_one_place(problems: Problems, one: str, other: str, problem: str) -> None:
    found = problems(with_locations(f"one: {one}", f"two: {other}"))
    assert len(found) == 1
    assert found[0].startswith(f"repository.locations.{problem}")
    assert "repository.locations.one" in found[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{type: s3, bucket: b}", "{type: s3, bucket: c}"),
        ("{type: s3, bucket: b, prefix: p}", "{type: s3, bucket: b, prefix: pq}"),
        ("{type: s3, bucket: b}", "{type: s3, bucket: b, endpoint_url: 'https://s3.example'}"),
        (SFTP[7:] + "}", SFTP[7:].replace("host: h", "host: i") + "}"),
        (SFTP[7:] + "}", SFTP[7:].replace("user: u", "user: v") + "}"),
        (SFTP[7:] + "}", SFTP[7:] + ", port: 2222}"),
    ],
)
def test_two_places(load: Load, one: str, other: str) -> None:
    assert len(load(with_locations(f"one: {one}", f"two: {other}")).repository.locations) == 3


# Advice


LOCKED = S3 + ", object_lock: {mode: compliance, retain: 30d}}"


@pytest.mark.parametrize(
    ("line", "retention", "places"),
    [
        (S3 + "}", "", []),
        (S3 + ", endpoint_url: 'https://s3.example'}", "", []),
        (S3 + ", endpoint_url: 'http://s3.example'}", "", ["cloud.endpoint_url: has no TLS"]),
        (S3 + ", create_only: check}", "", ["cloud.create_only: check is weaker"]),
        (LOCKED, "", ["cloud.object_lock.retain: is 30d, and the retention rules keep backups for ever"]),
        (LOCKED, "full: {keep_within: 30d}, incremental: {keep_within: 30d}", []),
        (
            LOCKED,
            "full: {keep_within: 60d}, incremental: {keep_within: 30d}",
            ["cloud.object_lock.retain: is 30d, and the retention rules keep backups for 60d"],
        ),
        (
            LOCKED,
            "full: {keep_monthly: 3}, incremental: {keep_within: 7d}",
            [
                "cloud.object_lock.retain: is 30d, and the retention rules keep backups for 90d",
                "cloud.object_lock.retain: is 30d, and the retention rules drop backups after 7d",
            ],
        ),
        (LOCKED, "full: {keep_last: 3}, incremental: {keep_within: 30d}", ["cloud.object_lock.retain: is 30d"]),
    ],
)
def test_advice(load: Load, line: str, retention: str, places: list[str]) -> None:
    found = advice(load(with_locations(line) + f"retention: {{{retention}}}\n"))
    assert len(found) == len(places)
    for each, place in zip(found, places, strict=True):
        assert str(each).startswith(f"repository.locations.{place}")
        assert each.hint


def test_how_long_rules_keep(load: Load) -> None:
    policy = load(
        MINIMAL + "retention: {full: {keep_weekly: 5, keep_within: 10d}, incremental: {keep_hourly: 48}}\n"
    ).retention
    assert longest_kept(policy) == dt.timedelta(days=35)
    assert shortest_kept(policy) == dt.timedelta(days=2)
