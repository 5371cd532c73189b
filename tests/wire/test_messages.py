"""Records, batches and ids are what the official Java library makes of them: `java/PrintProtocol.java` wrote them."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerobee.log import Complaints
from aerobee.protocol import message as wire
from aerobee.protocol.message import Message, decode_batch, decode_records, parse_properties

LINES = dict(line.split("\t", 1) for line in (Path(__file__).parent / "data" / "messages.txt").read_text().splitlines())
BODY = "".join(f"line {i} é\n" for i in range(500)).encode()
PROPERTIES = {"größe": "1 €", "UNIQ_KEY": "0A010203ABCD18B4AAC20123456789AB", "TAGS": "new", "KEYS": "k1 k2"}
RECORDS = ["plain", "ipv6", "zlib", "zlib_unnamed", "lz4", "zstd", "version2"]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_read(name: str) -> None:
    data = bytes.fromhex(LINES[name])
    (message,) = decode_records(data, broker_name="a")
    hosts = ("[2001:db8::1]:50001", "[2001:db8::2]:10911") if name == "ipv6" else ("10.1.2.3:50001", "10.1.2.4:10911")
    assert message.topic == ("long_topic_" * 20 if name == "version2" else "orders")
    assert message.body == BODY
    assert message.properties == PROPERTIES
    assert (message.born_host, message.store_host) == hosts
    assert (message.queue_id, message.flag, message.reconsume_times) == (3, 42, 2)
    assert (message.born_timestamp, message.store_timestamp) == (1700000000001, 1700000000002)
    assert message.prepared_transaction_offset == 77
    assert message.store_size == len(data)
    assert message.broker_name == "a"
    assert (message.tag, message.keys) == ("new", ["k1", "k2"])
    assert message.message_id == message.unique_id == PROPERTIES["UNIQ_KEY"]
    if name != "version2":  # that one was not stored yet
        assert (message.queue_offset, message.commit_log_offset) == (123456789012, 9876543210)
        assert message.offset_message_id == LINES["id_ipv6" if name == "ipv6" else "id"]
    if name in ("plain", "ipv6", "version2"):
        assert decode_records(data, check_crc=True)[0].body == BODY


def test_records_behind_each_other_and_a_cut_tail() -> None:
    data = b"".join(bytes.fromhex(LINES[name]) for name in RECORDS)
    assert [message.body for message in decode_records(data)] == [BODY] * len(RECORDS)
    assert len(decode_records(data[:-1])) == len(RECORDS) - 1
    assert decode_records(b"") == []


def test_a_damaged_body_is_noticed() -> None:
    data = bytearray.fromhex(LINES["plain"])
    data[200] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        decode_records(bytes(data), check_crc=True)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(RECORDS),
    changes=st.lists(st.tuples(st.integers(0, 140), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 3000),
)
def test_hostile_records_raise_nothing_but_value_error(name: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray.fromhex(LINES[name])
    for at, value in changes:
        data[at % len(data)] = value
    try:
        decode_records(bytes(data[: len(data) - cut]))
    except ValueError:
        pass


@pytest.mark.parametrize("kind", [wire.SYS_FLAG_ZLIB, wire.SYS_FLAG_LZ4, wire.SYS_FLAG_ZSTD])
def test_bodies_are_compressed_and_unfolded(kind: int) -> None:
    packed = wire.compress_body(BODY, kind)
    assert len(packed) < len(BODY) / 2
    assert wire.decompress_body(packed, wire.SYS_FLAG_COMPRESSED | kind) == BODY
    with pytest.raises(ValueError, match="more than"):
        wire.decompress_body(packed, kind, bytes_max=1000)
    with pytest.raises(ValueError, match="decompressed"):
        wire.decompress_body(b"nonsense" * 4, kind)


def test_a_body_that_cannot_be_decompressed_keeps_no_other_message_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_complaints", Complaints(logging.getLogger("aerobee.protocol.message")))
    plain = bytearray.fromhex(LINES["plain"])
    spoiled = bytes(plain[:36]) + (int.from_bytes(plain[36:40], "big") | 0x301).to_bytes(4, "big") + bytes(plain[40:])
    found = decode_records(bytes(plain) + spoiled * 3 + bytes(plain))
    assert [message.body for message in found] == [BODY] * 5
    assert found[1].sys_flag & wire.SYS_FLAG_COMPRESSED
    assert len([record for record in caplog.records if "cannot be decompressed" in record.getMessage()]) == 1
    assert wire.any_compressed(bytes(plain) + spoiled + bytes(plain))
    assert not wire.any_compressed(bytes(plain) * 2) and not wire.any_compressed(b"")


def test_a_batch_of_any_size_has_one_id_and_those_of_its_messages() -> None:
    batch = wire.batch_of([Message("orders", b"x") for _ in range(5000)])
    assert len(set(batch.batch_ids)) == 5000
    assert len(batch.encode_properties()) < 100 and batch.unique_id not in batch.batch_ids


def test_a_batch_is_read_and_written() -> None:
    data = bytes.fromhex(LINES["batch"])
    read = [(flag, body, parse_properties(text)) for flag, body, text in decode_batch(data)]
    assert read == [(i, f"body {i}".encode(), {"KEYS": f"key{i}", "WAIT": "true", "TAGS": f"tag{i}"}) for i in range(3)]
    ours = wire.batch_of([Message("orders", f"body {i}", tag=f"tag{i}", keys=f"key{i}", flag=i) for i in range(3)])
    again = decode_batch(ours.body)
    assert [(flag, body) for flag, body, _ in again] == [(flag, body) for flag, body, _ in read]
    assert list(ours.batch_ids) == [parse_properties(text)["UNIQ_KEY"] for _, _, text in again]


def test_a_cut_batch_is_refused() -> None:
    data = bytes.fromhex(LINES["batch"])
    whole = {len(data) // 3 * i for i in range(4)}
    for cut in range(len(data) + 1):
        if cut in whole:
            assert len(decode_batch(data[:cut])) == cut * 3 // len(data)
        else:
            with pytest.raises(ValueError, match="batch"):
                decode_batch(data[:cut])


def test_hashes() -> None:
    for name, number in LINES.items():
        if name.startswith("hash "):
            assert wire.java_hash(name.removeprefix("hash ")) == int(number)


def test_offset_ids() -> None:
    for name, host in (("id", "10.1.2.4:10911"), ("id_ipv6", "[2001:db8::2]:10911")):
        assert wire.offset_message_id(host, 9876543210) == LINES[name]
        assert wire.parse_offset_message_id(LINES[name]) == (host, 9876543210)
    for wrong in ("", "xyz", "0A0102", "0A01020400002A9F000000024CB016"):
        with pytest.raises(ValueError, match="offset message id"):
            wire.parse_offset_message_id(wrong)


def test_unique_ids_differ_between_threads() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend(wire.new_unique_id() for _ in range(5000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 20000
    assert all(len(unique_id) == 32 and int(unique_id, 16) for unique_id in made)
    assert int(made[0][8:12], 16) == os.getpid() & 0xFFFF


def test_unique_ids_differ_after_a_fork() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, " ".join(wire.new_unique_id() for _ in range(100)).encode())
        os._exit(0)
    ours = {wire.new_unique_id() for _ in range(100)}
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = set(pipe.read().split())
    assert len(theirs) == 100
    assert not ours & theirs


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\x01\x02", codec="utf-8")),
        st.text(st.characters(exclude_characters="\x01\x02", codec="utf-8")),
    )
)
def test_properties_come_back(properties: dict[str, str]) -> None:
    assert parse_properties(wire.format_properties(properties)) == properties
