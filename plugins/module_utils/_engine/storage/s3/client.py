# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From options to a client of botocore. Importing botocore takes longer than most commands: only here, and late."""

from __future__ import annotations

import configparser
import dataclasses
import os
import typing as t

from ... import __version__
from ...errors import LocationError
from ..secret_file import read_secret

if t.TYPE_CHECKING:
    from pathlib import Path

    from botocore.config import Config
    from botocore.credentials import Credentials
    from botocore.session import Session

    from ...config.locations import S3Options

DEFAULT_REGION = "us-east-1"
CONNECT_SECONDS = 10.0
POOL_CONNECTIONS = 32  # more threads than any job has: a request never waits for a connection


def new_client(name: str, options: S3Options) -> t.Any:
    """A client for one location, thread-safe. No requests. Raises LocationError for unusable credentials or files."""
    from botocore.exceptions import BotoCoreError

    try:
        session = _session(name, options)
        client = session.create_client("s3", config=_config(options), **_endpoint(name, options, session))
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise LocationError(
            f"location {name!r}: {error}",
            hint="Correct the options of this location. Nothing was changed.",
            id="location-config",
        ) from error
    if options.endpoint_url is not None:
        client.meta.events.register("before-call.s3", _stay_there)
    return client


def _stay_there(params: dict[str, t.Any], **_unused: t.Any) -> None:
    """A store with an address of its own has no other regions.

    Where everything is redirected, as from http to https, botocore looks for the region until it runs out of stack.
    """
    params.get("context", {}).setdefault("s3_redirect", {})["redirected"] = True


def _config(options: S3Options) -> Config:
    from botocore.config import Config

    encrypted = (options.endpoint_url or "https://").startswith("https://")
    values: dict[str, t.Any] = {
        "signature_version": "s3v4",
        # Without TLS the connection's timeout is also that of sending a whole body.
        "connect_timeout": CONNECT_SECONDS if encrypted else max(CONNECT_SECONDS, options.timeout),
        "read_timeout": options.timeout,
        "retries": {"mode": "standard", "total_max_attempts": 1},  # calls.py retries: it knows what was lost
        "max_pool_connections": POOL_CONNECTIONS,
        "tcp_keepalive": True,
        "proxies": {"http": options.proxy, "https": options.proxy} if options.proxy else None,
        # Every object carries a CRC32C of ours. botocore's own, in trailers of chunked bodies, breaks many stores.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {
            "addressing_style": addressing(options),
            # TLS guards the body on the way; hashing it once more for the signature costs as much as encrypting it.
            "payload_signing_enabled": not encrypted,
        },
        "user_agent_extra": f"cryobackup/{__version__}",
        "ignore_configured_endpoint_urls": True,
    }
    return Config(**values)


def addressing(options: S3Options) -> str:
    """Where the bucket goes in the URL. Stores other than Amazon's rarely have a host name for each bucket."""
    if options.addressing == "auto" and options.endpoint_url and ".amazonaws.com" not in options.endpoint_url:
        return "path"
    return options.addressing


def _session(name: str, options: S3Options) -> Session:
    if options.role_arn is not None:
        return _session_with(_role_credentials(name, options))
    if options.credentials_file is not None:
        return _session_with(read_credentials(name, options.credentials_file, options.profile))
    import botocore.session

    return botocore.session.Session()


def _session_with(credentials: Credentials) -> Session:
    """The user's own ~/.aws and AWS_PROFILE must not change what a job with credentials of its own does."""
    import botocore.session

    own = dict.fromkeys(("profile", "region"), (None, None, None, None))
    session = botocore.session.Session(session_vars=own | {"config_file": (None, None, os.devnull, None)})
    session.register_component("credential_provider", _Found(credentials))
    return session


_OF_SESSION: t.Final = "aws_session_token"
_KEYS: t.Final = ("aws_access_key_id", "aws_secret_access_key", _OF_SESSION)


def _is_word(value: str) -> bool:
    """Anything else cannot be sent in a header, and whoever tries says so with the value in the text."""
    return value.isascii() and value.isprintable() and value.split() == [value]


class _Found:
    """Stands where botocore looks for credentials."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def load_credentials(self) -> Credentials:
        return self._credentials


def read_credentials(name: str, path: Path, profile: str | None) -> Credentials:
    """One section of an INI file as the AWS programs have it. Raises LocationError, never with a secret in it."""
    from botocore.credentials import Credentials

    parser = configparser.RawConfigParser()
    section = profile or "default"
    try:
        parser.read_string(read_secret(name, path))
        found = parser[section]
        keys = [key for key in _KEYS if key != _OF_SESSION or found.get(key)]
        broken = [key for key in keys if not _is_word(found[key])]
        if not broken:
            return Credentials(*(found[key] for key in keys))
        what = f"has no {broken[0]} in [{section}] that is one word of ASCII"
    except KeyError as error:
        missing = f"no section [{section}]" if error.args[0] == section else f"no {error.args[0]} in [{section}]"
        what = f"has {missing}"
    except configparser.Error as error:
        # Its own text repeats the line, which may be the secret.
        what = f"is no INI file ({type(error).__name__})"
    raise LocationError(
        f"location {name!r}: {path} {what}",
        hint=f"It needs a section [{section}] with aws_access_key_id and aws_secret_access_key.",
        id="location-denied",
    )


def _endpoint(name: str, options: S3Options, session: Session) -> dict[str, t.Any]:
    """Where to connect, and whom to trust there."""
    import ssl

    arguments: dict[str, t.Any] = {
        "region_name": options.region or session.get_config_variable("region") or DEFAULT_REGION,
        "endpoint_url": options.endpoint_url,
    }
    if options.ca_file is not None:
        try:
            ssl.create_default_context(cafile=str(options.ca_file))
        except OSError as error:  # what OpenSSL says is one, too
            raise LocationError(
                f"location {name!r}: cannot use {options.ca_file}: {error.strerror or error}",
                hint="ca_file is a file of PEM certificates; leave it out to trust those of the system.",
                id="location-config",
            ) from error
        arguments["verify"] = str(options.ca_file)
    return arguments


def _role_credentials(name: str, options: S3Options) -> Credentials:
    """Credentials of a role; botocore takes it again before they expire. No requests yet."""
    import botocore.session
    from botocore.credentials import (
        AssumeRoleCredentialFetcher,
        AssumeRoleWithWebIdentityCredentialFetcher,
        DeferredRefreshableCredentials,
    )

    role = options.role_arn or ""
    extra = {"RoleSessionName": "cryobackup"}
    if options.web_identity_token_file is not None:
        path = options.web_identity_token_file

        def token() -> str:  # read again each time: the platform renews it
            return read_secret(name, path, private=False).strip()

        creator = _sts(name, options, botocore.session.Session())
        with_token = AssumeRoleWithWebIdentityCredentialFetcher(creator, token, role, extra)
        return DeferredRefreshableCredentials(with_token.fetch_credentials, "assume-role-with-web-identity")
    own = dataclasses.replace(options, role_arn=None)
    session = _session(name, own)
    source = session.get_credentials()
    if source is None:
        raise LocationError(
            f"location {name!r}: there are no credentials to take the role {role} with",
            hint="Name a credentials_file, or a web_identity_token_file.",
            id="location-denied",
        )
    fetcher = AssumeRoleCredentialFetcher(_sts(name, options, session), source, role, extra)
    return DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


def _sts(name: str, options: S3Options, session: Session) -> t.Callable[..., t.Any]:
    """Makes clients of the service that gives out roles. Stores with an endpoint of their own have it there, too."""
    from botocore.config import Config

    endpoint = _endpoint(name, options, session)
    values: dict[str, t.Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": options.timeout,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "proxies": {"http": options.proxy, "https": options.proxy} if options.proxy else None,
        "ignore_configured_endpoint_urls": True,
    }
    config = Config(**values)

    def create(service: str, **arguments: t.Any) -> t.Any:
        own = arguments.pop("config", None)  # the token's fetcher asks for requests that are not signed
        return session.create_client(service, config=config.merge(own) if own else config, **endpoint, **arguments)

    return create


def speaks_tls(endpoint_url: str) -> bool:
    """Whether a server answers a handshake of TLS. Nothing is sent to it, and nobody is trusted."""
    import socket
    import ssl
    import urllib.parse

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = urllib.parse.urlsplit(endpoint_url)
    try:
        with (
            socket.create_connection((url.hostname, url.port or 80), timeout=CONNECT_SECONDS) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:  # what OpenSSL says is one, too
        return False
