# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container: what is read is what was written, or an error that names the object."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobackup.crypto import suite
from cryobackup.crypto.keys import KeyRing, new_keys
from cryobackup.errors import CryoError, DamageError, RepositoryError
from cryobackup.repository import container as c
from cryobackup.repository.model import Lease

REPOSITORY = "ab" * 16
KEYS = KeyRing(new_keys(REPOSITORY), "test")
NAME = "packs/20260101T000000Z-00000000/000000.pack"


def encode(frames: list[bytes], kind: int = c.PACK, name: str = NAME, keys: KeyRing = KEYS) -> bytes:
    encoder = c.ObjectEncoder(keys, kind, name)
    return encoder.start + b"".join(encoder.frame(c.DATA, frame) for frame in frames) + encoder.finish()


def decode(data: bytes, kind: int = c.PACK, name: str = NAME, keys: KeyRing = KEYS) -> list[bytes]:
    decoder = c.ObjectDecoder(keys, kind, name, c.BytesSource(data))
    return [decoder.frame(row, number, c.DATA) for number, row in enumerate(decoder.table())]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=6))
def test_frames_come_back(frames):
    assert decode(encode(frames)) == frames


def test_what_does_not_compress_is_stored():
    import os

    noise, zeros = os.urandom(100_000), bytes(100_000)
    assert len(encode([noise])) < 102_000
    assert len(encode([zeros])) < 3_000
    assert decode(encode([noise, zeros])) == [noise, zeros]


def test_every_flipped_bit_is_noticed():
    """Every byte of an object in turn: never other bytes than those written, always an error of ours."""
    frames = [b"first" * 20, b"second"]
    data = encode(frames)
    for at in range(len(data)):
        for mask in (0x01, 0xFF):
            wrong = bytearray(data)
            wrong[at] ^= mask
            with pytest.raises(CryoError) as caught:
                decode(bytes(wrong))
            assert "20260101T000000Z" in caught.value.message


def test_every_truncation_and_every_surplus_is_noticed():
    data = encode([b"first" * 20, b"second"])
    for length in range(len(data)):
        with pytest.raises(DamageError):
            decode(data[:length])
    for surplus in (b"\0", data[-32:], data):
        with pytest.raises(DamageError):
            decode(data + surplus)


def test_frames_cannot_be_swapped_dropped_or_doubled():
    encoder = c.ObjectEncoder(KEYS, c.PACK, NAME)
    one, two = encoder.frame(c.DATA, b"1" * 64), encoder.frame(c.DATA, b"2" * 64)
    end = encoder.finish()
    assert decode(encoder.start + one + two + end) == [b"1" * 64, b"2" * 64]
    for body in (two + one, one, two, one + one, one + two + two, b""):
        with pytest.raises(DamageError):
            decode(encoder.start + body + end)


def test_an_object_does_not_pass_for_another():
    other = NAME.replace("000000.pack", "000001.pack")
    with pytest.raises(DamageError, match=r"000000\.pack under a wrong name"):
        decode(encode([b"x"]), name=other)
    with pytest.raises(DamageError, match="type 1, expected 2"):
        decode(encode([b"x"]), kind=c.WAL)


def test_frames_of_another_object_are_refused():
    one, other = encode([b"x" * 50]), encode([b"y" * 50])
    start = len(c.ObjectEncoder(KEYS, c.PACK, NAME).start)
    assert len(one) == len(other)
    with pytest.raises(DamageError):
        decode(one[:start] + other[start:])


def test_a_data_key_that_was_not_committed_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """AES-GCM alone opens a crafted ciphertext under several keys: the writer has to have bound itself to one."""
    other = suite.random_key()
    committed = suite.commitment

    def lie(_data_key: bytes, *rest: bytes) -> bytes:
        return committed(other, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(suite, "commitment", lie)
        data = encode([b"frame"])
    with pytest.raises(DamageError, match="committed"):
        decode(data)


def test_another_repository_is_told_from_damage():
    foreign = KeyRing(new_keys("cd" * 16), "foreign")
    with pytest.raises(RepositoryError) as caught:
        decode(encode([b"x"]), keys=foreign)
    assert caught.value.id == "foreign-repository"
    same_id = KeyRing(new_keys(REPOSITORY), "same id, other keys")
    with pytest.raises(DamageError, match="catalog key"):
        decode(encode([b"x"]), keys=same_id)


def test_a_host_without_identity_reads_headers_and_records_but_no_data():
    write_only = KeyRing([key for key in KEYS.keys if key.role != "identity"], "host")
    decoder = c.ObjectDecoder(write_only, c.PACK, NAME, c.BytesSource(encode([b"secret"], keys=write_only)))
    with pytest.raises(CryoError, match="no key of epoch 1"):
        decoder.table()
    lease = Lease("b", "main", None, "host", "boot", 1, "now")
    encoded = c.encode_record(write_only, c.LEASE, "leases/main/b", lease)
    assert c.decode_record(write_only, c.LEASE, "leases/main/b", encoded, Lease) == lease


def test_no_two_objects_share_a_key_or_a_ciphertext():
    assert encode([b"same"]) != encode([b"same"])


def test_old_epochs_stay_readable():
    """Rotation: a new key set is used for what comes, the old one still reads what was."""
    old = encode([b"old"])
    rotated = KeyRing([*KEYS.keys, *new_keys(REPOSITORY, epoch=2)], "rotated")
    new = encode([b"new"], keys=rotated)
    assert (decode(old, keys=rotated), decode(new, keys=rotated)) == ([b"old"], [b"new"])
    with pytest.raises(CryoError, match="epoch 2"):
        decode(new)
    assert rotated.digest_key == KEYS.digest_key


def test_a_frame_larger_than_the_format_allows_is_not_written():
    with pytest.raises(RepositoryError):
        encode([bytes(c.MAX_FRAME_BYTES + 1)])


def test_records_are_plain_data():
    lease = Lease("b", "main", "p", "host", "boot", 7, "2026-01-01T00:00:00+00:00")
    name = "leases/main/b"
    encoded = c.encode_record(KEYS, c.LEASE, name, lease)
    assert dataclasses.asdict(c.decode_record(KEYS, c.LEASE, name, encoded, Lease)) == dataclasses.asdict(lease)
