"""The engine's codec through Python: frames of Apache's own classes, all ways of cutting a stream, garbage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerobee._engine import CommandTuple, Decoder, encode_frame
from aerobee.errors import ProtocolError

GOLDEN = Path(__file__).parents[2] / "rust/engine/tests/golden/header_frames.txt"


def golden_frames() -> list[bytes]:
    return [bytes.fromhex(line.split()[-1]) for line in GOLDEN.read_text().splitlines()]


def feed(stream: bytes, size: int) -> list[CommandTuple]:
    decoder = Decoder()
    out = []
    for at in range(0, len(stream), size):
        out += decoder.feed(memoryview(stream)[at : at + size])
    assert decoder.kept_bytes == 0
    return out


def test_frames_of_apaches_classes_come_out_as_they_went_in() -> None:
    frames = golden_frames()
    stream = b"".join(frames)
    commands = feed(stream, len(stream))
    assert commands == feed(stream, 1) == feed(stream, 50)
    assert [encode_frame(*command) for command in commands] == frames


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
int32 = st.integers(-(2**31), 2**31 - 1)
int16 = st.integers(-(2**15), 2**15 - 1)
commands = st.tuples(
    int16,
    st.integers(0, 13),
    int16,
    int32,
    int32,
    st.none() | text,
    st.dictionaries(text, text, max_size=5),
    st.binary(max_size=50),
    st.integers(0, 1),
)


@given(st.lists(commands, max_size=4), st.integers(1, 40))
def test_what_is_written_is_read(wanted: list[CommandTuple], size: int) -> None:
    stream = b"".join(encode_frame(*command) for command in wanted)
    assert feed(stream, size) == wanted


def test_bytes_left_over_wait_for_the_rest() -> None:
    frame = encode_frame(10, 0, 513, 1, 0, None, None, b"body", 0)
    decoder = Decoder()
    assert len(decoder.feed(frame + frame[:9])) == 1
    assert decoder.kept_bytes == 9
    assert len(decoder.feed(frame[9:])) == 1
    assert decoder.kept_bytes == 0


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "tls"),
        (b"\x7f\xff\xff\xff\x00\x00\x00\x00", "frame_too_large"),
        (b"\x00\x00\x00\x06\x00\x00\x00\x09{}", "header_too_long"),
        (b"\x00\x00\x00\x06\x05\x00\x00\x02{}", "unknown_encoding"),
        (b"\x00\x00\x00\x06\x00\x00\x00\x02{!", "bad_header"),
    ],
)
def test_garbage_is_a_protocol_error_with_its_kind_in_front(stream: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        Decoder().feed(stream)
    assert str(raised.value).startswith(reason + ": ")


def test_a_frame_limit_of_our_own() -> None:
    frame = encode_frame(10, 0, 513, 1, 0, None, None, bytes(100), 0)
    with pytest.raises(ProtocolError, match="frame_too_large"):
        Decoder(frame_bytes_max=100).feed(frame)


def test_none_among_the_fields_is_left_out_and_other_things_are_refused() -> None:
    frame = encode_frame(1, 0, 0, 0, 0, None, {"a": None, "b": "1"}, None, 0)  # type: ignore[dict-item]
    assert Decoder().feed(frame)[0][6] == {"b": "1"}
    with pytest.raises(TypeError):
        encode_frame(1, 0, 0, 0, 0, None, {"a": 1}, None, 0)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="encoding"):
        encode_frame(1, 0, 0, 0, 0, None, None, None, 2)
