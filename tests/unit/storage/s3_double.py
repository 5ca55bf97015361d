# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bucket in memory that speaks S3, and misbehaves when told to.

Only for what a real store cannot be made to do at the wished moment; real ones are in tests/integration/storage.
"""

from __future__ import annotations

import email.utils
import http.server
import itertools
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

BUCKET = "bucket"


@dataclass
class Seen:
    """One request."""

    operation: str
    key: str
    headers: dict[str, str]
    query: dict[str, str]
    body: bytes


@dataclass
class Stored:
    data: bytes
    headers: dict[str, str]
    modified: float


@dataclass
class Fault:
    """What happens instead of an answer, so many times."""

    operation: str
    times: int = 1
    status: int = 0
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False
    """Whether the request does its work nevertheless."""
    cut: bool = False
    """The connection ends without an answer."""
    body_bytes: int | None = None
    """The answer's body breaks off after so many bytes."""
    meanwhile: Callable[[], None] = lambda: None


class Double:
    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = {}
        self.faults: list[Fault] = []
        self.numbers = itertools.count()  # never used twice: an upload that is over stays over
        self.seen: list[Seen] = []
        self.conditional = True
        self.checksums = True
        self.server = ""
        self.versions: dict[str, list[tuple[str, Stored | None]]] | None = None
        """By key, oldest first; None stands for a marker that the object is deleted."""
        self.ranges = True
        self.echo: Callable[[str], str | None] = lambda checksum: checksum
        self.page = 1000
        self.lock = threading.RLock()

    def operations(self) -> list[str]:
        return [seen.operation for seen in self.seen]

    def put(self, key: str, data: bytes, **headers: str) -> str:
        """The id of the version."""
        return self.put_on_top(key, Stored(data, dict(headers), time.time()))

    def put_on_top(self, key: str, stored: Stored | None) -> str:
        version = f"version{sum(map(len, (self.versions or {}).values()))}-{len(self.seen)}"
        if self.versions is not None:
            self.versions.setdefault(key, []).append((version, stored))
        self.show(key, stored)
        return version

    def show(self, key: str, stored: Stored | None) -> None:
        if stored is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = stored

    def fault(self, operation: str) -> Fault | None:
        for fault in self.faults:
            if fault.operation == operation and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: Double

    def log_message(self, *_args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        path = f"/{BUCKET}{url.path}" if url.netloc.startswith(f"{BUCKET}.") else url.path
        _empty, bucket, *rest = urllib.parse.unquote(path).split("/", 2)
        key = rest[0] if rest else ""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        operation = _operation(self.command, key, query, headers)
        seen = Seen(operation, key, headers, query, body)
        double = self.double
        with double.lock:
            double.seen.append(seen)
            fault = double.fault(operation)
            if fault is not None:
                fault.meanwhile()
            if fault is None or fault.done or fault.body_bytes is not None:
                there = bucket == BUCKET or operation == "role"
                answer = getattr(_Actions(double), operation)(seen) if there else _missing("NoSuchBucket")
            else:
                body = _xml_error(fault.code)
                if operation == "role":
                    body = b"<ErrorResponse>" + body + b"<RequestId>1</RequestId></ErrorResponse>"
                answer = fault.status, body, fault.headers
        if fault is not None and fault.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        with suppress(ConnectionError):  # the client has given up
            self._answer(*answer, limit=None if fault is None else fault.body_bytes)

    def version_string(self) -> str:
        return self.double.server or "double"

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, limit: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if limit is None else body[:limit])
        if limit is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def _operation(method: str, key: str, query: dict[str, str], headers: dict[str, str]) -> str:
    if not key:
        if method == "POST":
            return "role"
        if "uploads" in query:
            return "list_uploads"
        if "versions" in query:
            return "list_versions"
        return "versioning" if "versioning" in query else "lock" if "object-lock" in query else "list"
    if method == "POST":
        return "create_upload" if "uploads" in query else "complete"
    if "x-amz-copy-source" in headers:
        return "copy"
    if "uploadId" in query:
        return "part" if method == "PUT" else "abort"
    return method.lower()


Answer = tuple[int, bytes, dict[str, str]]


def _xml_error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode() if code else b""


def _missing(code: str) -> Answer:
    return 404, _xml_error(code), {}


class _Actions:
    """Under the lock."""

    def __init__(self, double: Double) -> None:
        self.double = double

    def put(self, seen: Seen) -> Answer:
        return self._store(seen, seen.key, seen.body, seen.headers)

    def _store(self, seen: Seen, key: str, data: bytes, headers: dict[str, str]) -> Answer:
        if seen.headers.get("if-none-match") == "*" and self.double.conditional and key in self.double.objects:
            return 412, _xml_error("PreconditionFailed"), {}
        if not self.double.checksums and any("checksum" in name for name in seen.headers):
            return self._refuse_checksums()
        version = self.double.put(key, data, **headers)
        told = self._echo(seen) | ({} if self.double.versions is None else {"x-amz-version-id": version})
        return 200, b"<CompleteMultipartUploadResult/>" if seen.operation == "complete" else b"", told

    def _refuse_checksums(self) -> Answer:
        text = "<Error><Code>InvalidArgument</Code><Message>Unsupported header x-amz-checksum</Message></Error>"
        return 400, text.encode(), {}

    def copy(self, seen: Seen) -> Answer:
        source, _query, version = seen.headers["x-amz-copy-source"].partition("?versionId=")
        assert urllib.parse.unquote(source) == f"{BUCKET}/{seen.key}"
        stored = dict((self.double.versions or {})[seen.key])[version]
        self.double.put_on_top(seen.key, stored)
        return 200, b"<CopyObjectResult/>", {}

    def _echo(self, seen: Seen) -> dict[str, str]:
        checksum = self.double.echo(seen.headers.get("x-amz-checksum-crc32c", ""))
        return {"ETag": '"etag"'} | ({"x-amz-checksum-crc32c": checksum} if checksum else {})

    def create_upload(self, seen: Seen) -> Answer:
        if not self.double.checksums and any("checksum" in name for name in seen.headers):
            return self._refuse_checksums()
        upload = f"upload-{next(self.double.numbers)}"
        self.double.uploads[upload] = seen.key, seen.headers, {}
        return 200, f"<R><UploadId>{upload}</UploadId></R>".encode(), {}

    def part(self, seen: Seen) -> Answer:
        if seen.query["uploadId"] not in self.double.uploads:
            return _missing("NoSuchUpload")
        self.double.uploads[seen.query["uploadId"]][2][int(seen.query["partNumber"])] = seen.body
        return 200, b"", self._echo(seen)

    def complete(self, seen: Seen) -> Answer:
        if seen.query["uploadId"] not in self.double.uploads:
            return _missing("NoSuchUpload")
        key, headers, parts = self.double.uploads[seen.query["uploadId"]]
        answer = self._store(seen, key, b"".join(parts[number] for number in sorted(parts)), headers)
        if answer[0] == 200:
            del self.double.uploads[seen.query["uploadId"]]
        return answer

    def abort(self, seen: Seen) -> Answer:
        found = self.double.uploads.pop(seen.query["uploadId"], None)
        return (204, b"", {}) if found else _missing("NoSuchUpload")

    def get(self, seen: Seen) -> Answer:
        stored = self.double.objects.get(seen.key)
        if "versionId" in seen.query:
            stored = dict((self.double.versions or {}).get(seen.key, ())).get(seen.query["versionId"])
        if stored is None:
            return _missing("NoSuchKey")
        headers = {
            "Last-Modified": email.utils.formatdate(stored.modified, usegmt=True),
            **{name: value for name, value in stored.headers.items() if name.startswith("x-amz-meta")},
        }
        wanted = seen.headers.get("range")
        if wanted is None or not self.double.ranges:
            return 200, stored.data, headers
        first, _dash, last = wanted.removeprefix("bytes=").partition("-")
        data = stored.data[int(first) : int(last) + 1 if last else None]
        if not data:
            return 416, _xml_error("InvalidRange"), {}
        return 206, data, headers | {"Content-Range": f"bytes {first}-{int(first) + len(data) - 1}/{len(stored.data)}"}

    def head(self, seen: Seen) -> Answer:
        status, data, headers = self.get(seen)
        return status, b"", headers | {"Content-Length": str(len(data)) if status == 200 else "0"}

    def delete(self, seen: Seen) -> Answer:
        double = self.double
        if double.versions is not None and "versionId" in seen.query:
            kept = [each for each in double.versions[seen.key] if each[0] != seen.query["versionId"]]
            double.versions[seen.key] = kept
            double.show(seen.key, kept[-1][1] if kept else None)
        else:
            double.put_on_top(seen.key, None)
        return 204, b"", {}

    def list_versions(self, seen: Seen) -> Answer:
        rows = ""
        for key, versions in sorted((self.double.versions or {}).items()):
            for number, (version, stored) in enumerate(reversed(versions)):
                kind = "Version" if stored else "DeleteMarker"
                modified = _iso(stored.modified if stored else time.time())
                latest = str(number == 0).lower()
                rows += (
                    f"<{kind}><Key>{escape(key)}</Key><VersionId>{version}</VersionId><IsLatest>{latest}</IsLatest>"
                    f"<LastModified>{modified}</LastModified></{kind}>"
                )
        return 200, f"<R><IsTruncated>false</IsTruncated>{rows}</R>".encode(), {}

    def list(self, seen: Seen) -> Answer:
        after = seen.query.get("continuation-token", "")
        found = [key for key in sorted(self.double.objects) if key.startswith(seen.query["prefix"]) and key > after]
        page = found[: self.double.page]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.double.objects[key].data)}</Size>"
            f"<LastModified>{_iso(self.double.objects[key].modified)}</LastModified></Contents>"
            for key in page
        )
        more = len(found) > len(page)
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        return 200, f"<R><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</R>".encode(), {}

    def list_uploads(self, seen: Seen) -> Answer:
        after = seen.query.get("upload-id-marker", "")
        found = [upload for upload in sorted(self.double.uploads) if upload > after]
        page = found[: self.double.page]
        rows = "".join(
            f"<Upload><Key>{self.double.uploads[upload][0]}</Key><UploadId>{upload}</UploadId>"
            "<Initiated>2020-01-01T00:00:00Z</Initiated></Upload>"
            for upload in page
        )
        more = len(found) > len(page)
        token = f"<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>{page[-1]}</NextUploadIdMarker>" if more else ""
        return 200, f"<R><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</R>".encode(), {}

    def versioning(self, _seen: Seen) -> Answer:
        return 200, b"<VersioningConfiguration/>", {}

    def lock(self, _seen: Seen) -> Answer:
        return _missing("ObjectLockConfigurationNotFoundError")


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@contextmanager
def serve(double: Double) -> Iterator[str]:
    """The URL of the endpoint."""
    handler: Any = type("Handler", (_Handler,), {"double": double})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
