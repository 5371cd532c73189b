"""The protocol's values: commands, headers, errors, JSON as Java speaks it, filters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerobee import errors
from aerobee.clock import ManualClock
from aerobee.errors import MalformedRequest, ProtocolError, ServerError, TopicNotExist, error_for
from aerobee.log import REASONS_MAX, Complaints
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.client import HeartbeatData
from aerobee.protocol.bodies.offsets import ConsumeStats, OffsetWrapper
from aerobee.protocol.bodies.pop import BatchAck
from aerobee.protocol.bodies.route import BrokerData, TopicRouteData
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.body_limits import check_body
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import FrameDecoder, RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.filter import Sql, is_wanted, parse_tags, subscription, tag_codes
from aerobee.protocol.headers.offsets import GetMaxOffset, GetMaxOffsetReply
from aerobee.protocol.headers.send import SendMessage, SendMessageV2
from aerobee.protocol.reply import error_reply

# Commands.


def test_a_reply_has_its_requests_number_and_encoding() -> None:
    for encoding in (0, 1):
        request = RemotingCommand.request(RequestCode.GET_MAX_OFFSET, GetMaxOffset(topic="t", queue_id=1))
        request.opaque, request.encoding = 77, encoding
        (read,) = FrameDecoder().feed(request.encode())
        assert read == request
        assert read.header(GetMaxOffset) == GetMaxOffset(topic="t", queue_id=1)
        reply = read.reply(header=GetMaxOffsetReply(offset=42))
        assert (reply.opaque, reply.encoding, reply.code, reply.is_response) == (77, encoding, 0, True)
        (again,) = FrameDecoder().feed(reply.encode())
        assert again.header(GetMaxOffsetReply).offset == 42


def test_oneway() -> None:
    assert RemotingCommand.request(RequestCode.HEART_BEAT, oneway=True).is_oneway
    assert not RemotingCommand.request(RequestCode.HEART_BEAT).is_oneway


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    code=st.integers(0, 32767), opaque=st.integers(-(2**31), 2**31 - 1), remark=st.none() | TEXT,
    fields=st.dictionaries(TEXT.filter(bool), TEXT, max_size=5), body=st.binary(max_size=50),
    encoding=st.sampled_from([0, 1]), cuts=st.lists(st.integers(0, 300), max_size=4),
)  # fmt: skip
def test_every_command_comes_back(
    code: int, opaque: int, remark: str | None, fields: dict[str, str], body: bytes, encoding: int, cuts: list[int]
) -> None:
    command = RemotingCommand(code, opaque=opaque, remark=remark, ext_fields=fields, body=body, encoding=encoding)
    data = command.encode()
    decoder, got, at = FrameDecoder(), [], 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        got += decoder.feed(data[at:cut])
        at = cut
    if encoding == 1:
        # The binary form does not tell "empty" and "not there" apart.
        command.remark = remark or None
        command.ext_fields = {name: value for name, value in fields.items() if value}
    assert got == [command]


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\xff" * 64, b"\0" * 64]
)
def test_what_is_no_command_is_refused(data: bytes) -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError) as refused:
        decoder.feed(data)
    assert refused.value.reason


# Headers.


def test_a_missing_field_is_named() -> None:
    with pytest.raises(MalformedRequest, match="no field queueId"):
        GetMaxOffset.from_fields({"topic": "t"})
    with pytest.raises(MalformedRequest, match=r"no field b\b"):
        SendMessageV2.from_fields({"a": "group"})


@pytest.mark.parametrize("value", ["", "x", "2147483648", "-2147483649", "1.5", "0x1", "9" * 50, "9" * 5000])
def test_an_unreadable_field_is_named(value: str) -> None:
    with pytest.raises(MalformedRequest, match="field queueId"):
        GetMaxOffset.from_fields({"topic": "t", "queueId": value})


def test_unknown_fields_are_ignored_and_none_is_left_out() -> None:
    header = GetMaxOffset.from_fields({"topic": "t", "queueId": "-1", "ns": "x", "lo": "true", "bname": "b"})
    assert header.to_fields() == {"topic": "t", "queueId": "-1", "committed": "true"}


def test_both_send_headers_have_the_same_names() -> None:
    assert SendMessage.__struct_fields__ == SendMessageV2.__struct_fields__


# Errors.


def test_errors_know_their_code_and_survive_pickling() -> None:
    error = error_for(17, "no such topic")
    assert isinstance(error, TopicNotExist)
    assert str(error) == "TopicNotExist (17): no such topic"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.remark) == (TopicNotExist, 17, "no such topic")
    assert isinstance(error_for(999), ServerError)
    assert isinstance(errors.RequestTimeout("late"), TimeoutError)
    assert isinstance(errors.ConnectError("gone"), ConnectionError)


def test_errors_become_responses() -> None:
    request = RemotingCommand.request(RequestCode.GET_MAX_OFFSET)
    request.opaque = 5
    for error, code in (
        (TopicNotExist("no"), ResponseCode.TOPIC_NOT_EXIST),
        (MalformedRequest("field x"), ResponseCode.INVALID_PARAMETER),
        (errors.DiskFull("no space"), ResponseCode.SERVICE_NOT_AVAILABLE),
        (errors.BadRecord("too long"), ResponseCode.MESSAGE_ILLEGAL),
        (ZeroDivisionError("ours"), ResponseCode.SYSTEM_ERROR),
    ):
        reply = error_reply(request, error)
        assert (reply.code, reply.opaque, reply.is_response) == (code, 5, True)
        assert reply.remark


# JSON.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(lambda t: t != "$ref"), inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_plain_json_is_read_as_everybody_reads_it(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2)):
        assert fastjson.loads(text) == value
        assert fastjson._loads_tolerantly(text) == value
        assert fastjson._loads_tolerantly(text.encode()) == value


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_what_is_written_is_json(value: Any) -> None:
    assert json.loads(fastjson.dumps(value)) == value
    assert json.loads(fastjson.dumps(value, pretty=True)) == value
    assert fastjson._loads_tolerantly(fastjson.dumps(value)) == value


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("{}[]:,\"'\\ab1.-e$ ref\n")) | st.text())
def test_nonsense_raises_nothing_but_malformed_request(text: str) -> None:
    try:
        fastjson.loads(text)
        fastjson._loads_tolerantly(text)
    except MalformedRequest:
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{0:"10.0.0.1:10911",1:"b"}', {"0": "10.0.0.1:10911", "1": "b"}),
        ("{a:1,b_c:'x',}", {"a": 1, "b_c": "x"}),
        ("[1,2,]", [1, 2]),
        ('{{"brokerName":"a","queueId":0,"topic":"t"}:{"x":1}}', {MessageQueue("t", "a", 0): {"x": 1}}),
        ('{"a":{"x":1},"b":{"$ref":"$.a"},"c":[{"$ref":"$.a.x"}]}', {"a": {"x": 1}, "b": {"x": 1}, "c": [1]}),
        ('{"a":{"b":{"$ref":".."}}}', {"a": {"b": None}}),
        ('{"a":{"$ref":"$"}}', {"a": None}),
        ('{"a":{"$ref":"$.nowhere[3]"}}', {"a": None}),
        ('{"a":Set["x"],"b":12L}', {"a": ["x"], "b": 12}),
        (r'"\ud83d\ude00\x41\/"', "😀A/"),
    ],
)
def test_what_java_writes_is_read(text: str, value: Any) -> None:
    assert fastjson.loads(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a"', '{"a":1', "[1", '"abc', "{a}", "nul", "1 2", '{"a":1}x', '"\\u12"', "[" * 100000, "{a:" * 9999],
)
def test_what_nobody_writes_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        fastjson.loads(text)


def test_references_cannot_unfold_without_end() -> None:
    levels = ",".join(f'"l{i}":[' + ",".join([f'{{"$ref":"$.l{i - 1}"}}'] * 10) + "]" for i in range(1, 12))
    with pytest.raises(MalformedRequest, match="references"):
        fastjson.loads('{"l0":[1],' + levels + "}")


@pytest.mark.parametrize(
    "path",
    ["$.s" + "[0]" * 60_000, "$.s" + ".s" * 90_000, "$." + "x" * 180_000, "$.l[" + "0" * 180_000 + "]"],
    ids=["into a text", "past a text", "a long name", "a long number"],
)
def test_a_long_reference_is_not_walked_again_for_each_that_points_at_it(path: str) -> None:
    # A character of a text is a text again, so such a path had no end; a quarter of a megabyte of it took a minute.
    text = '{"s":"x","l":[' + ",".join(['{"$ref":"$.a"}'] * 3000) + '],"a":{"$ref":"' + path + '"}}'
    began = time.perf_counter()
    with contextlib.suppress(MalformedRequest):
        assert fastjson.loads(text) == {"s": "x", "l": [None] * 3000, "a": None}
    assert time.perf_counter() - began < 0.1


def test_a_reference_steps_into_objects_by_name_and_into_arrays_by_number() -> None:
    text = '{"s":"xy","o":{"0":1},"r":[{"$ref":"$.s[0]"},{"$ref":"$.o[0]"},{"$ref":"$.o.0"},{"$ref":"$.s.x"}]}'
    assert fastjson.loads(text) == {"s": "xy", "o": {"0": 1}, "r": [None, None, 1, None]}


@pytest.mark.parametrize("digits", [20, 5000])
def test_a_reference_to_an_impossible_place_in_an_array_is_malformed(digits: int) -> None:
    with pytest.raises(MalformedRequest, match="place"):
        fastjson.loads('[{"$ref":"$[' + "9" * digits + ']"}]')


def test_go_cuts_the_address_map_by_hand() -> None:
    """client-go reads `{0:"a",1:"b"}` by splitting at `,` and `:`: not a blank may be in it."""
    route = TopicRouteData(
        broker_datas=[BrokerData(cluster="c", broker_name="b", broker_addrs={0: "1.2.3.4:1", 1: "1.2.3.5:1"})]
    )
    assert b'"brokerAddrs":{0:"1.2.3.4:1",1:"1.2.3.5:1"}' in route.to_json()
    assert b'"brokerAddrs":{"0":"1.2.3.4:1","1":"1.2.3.5:1"}' in route.to_json(standard=True)
    assert TopicRouteData.from_json(route.to_json()) == TopicRouteData.from_json(route.to_json(standard=True)) == route


def test_pretty_is_javas_form_of_files() -> None:
    table = {"offsetTable": {"t@g": {0: 5, 1: 6}, "e@g": {}}}
    text = fastjson.dumps(table, pretty=True, bare_keys=True).decode()
    assert text == '{\n\t"offsetTable":{\n\t\t"t@g":{\n\t\t\t0:5,\n\t\t\t1:6\n\t\t},\n\t\t"e@g":{}\n\t}\n}'


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("bare_keys", [True, False])
def test_big_tables_are_spelled_as_small_ones(pretty: bool, bare_keys: bool) -> None:
    trees: list[dict[str, Any]] = [
        {"a": {}, "b": [], "c": None, "d": [1, True, {"e": 'x",{}[]:\\\n\u00e4\U0001f600'}]},
        {"offsetTable": {"t@g": {0: 5, 11: -6}, "12": {}, "half \ud83d": {3: 2**62}}},
        {"topicConfigTable": {"t": TopicConfig(topic_name="t", attributes={"b": "1", "a": "2"})}, "x": {}},
    ]
    for tree in trees:
        if bare_keys and "offsetTable" in tree:
            tree["offsetTable"].pop("12")  # Java would know that this number is a text
        spelled = fastjson.dumps_table(tree, pretty=pretty, bare_keys=bare_keys)
        assert spelled == fastjson.dumps(tree, pretty=pretty, bare_keys=bare_keys)


def test_enums_come_as_numbers_too() -> None:
    """As the C++ client 1.0 writes a heartbeat, the end of the line included."""
    body = HeartbeatData.from_json(
        b'{"clientID":"4711-127.0.0.1@DEFAULT","consumerDataSet":[{"consumeFromWhere":4,"consumeType":1,"groupName":"g",'
        b'"messageModel":0,"subscriptionDataSet":[{"subString":"*","subVersion":"1795830075223","topic":"t"}]}]}\n'
    )
    (group,) = body.consumer_data_set
    assert group.consume_from_where == "CONSUME_FROM_FIRST_OFFSET"
    assert (group.consume_type, group.message_model) == ("CONSUME_PASSIVELY", "BROADCASTING")
    assert group.subscription_data_set[0].sub_version == 1795830075223
    for wrong in (b"-1", b"3"):
        with pytest.raises(MalformedRequest, match="none of the numbers"):
            HeartbeatData.from_json(b'{"consumerDataSet":[{"messageModel":' + wrong + b"}]}")


def test_nulls_count_as_left_out() -> None:
    body = HeartbeatData.from_json(b'{"clientID":"c","consumerDataSet":null,"producerDataSet":[{"groupName":null}]}')
    assert (body.client_id, body.consumer_data_set, body.producer_data_set[0].group_name) == ("c", [], "")


def test_a_body_of_the_wrong_kind_is_refused() -> None:
    for text in (b"[]", b'{"perm":"x"}', b'{"attributes":[1]}', b"\xff\xfe", b"null"):
        with pytest.raises(MalformedRequest):
            TopicConfig.from_json(text)


def test_keys_that_are_queues() -> None:
    stats = ConsumeStats(offset_table={MessageQueue("t", "b", 1): OffsetWrapper(broker_offset=9)})
    assert ConsumeStats.from_json(stats.to_json()) == stats


@given(st.sets(st.integers(0, 500), min_size=1))
def test_a_batch_of_acknowledgements(offsets: set[int]) -> None:
    ack = BatchAck(start_offset=min(offsets))
    ack.set_offsets(offsets)
    assert BatchAck.from_json(ack.to_json()).offsets() == sorted(offsets)


def test_a_topic_as_text() -> None:
    config = TopicConfig(
        topic_name="t", read_queue_nums=4, write_queue_nums=2, perm=4, attributes={"message.type": "FIFO"}
    )
    assert TopicConfig.from_text(config.to_text()) == config
    assert TopicConfig.from_text("t 4 2 4 SINGLE_TAG").attributes == {}
    for wrong in ("", "t", "t 4 2", "t a b c SINGLE_TAG"):
        with pytest.raises(MalformedRequest):
            TopicConfig.from_text(wrong)


# Filters.


def test_tag_expressions() -> None:
    for everything in (None, "", "*"):
        assert parse_tags(everything) is None
        assert tag_codes(everything) is None
    assert parse_tags("a || b||c || a") == ["a", "b", "c"]
    assert parse_tags(" || ") == []
    assert tag_codes("TagA") == [2598919]
    for nothing in ("||", "||||"):
        with pytest.raises(ValueError, match="names no tag"):
            parse_tags(nothing)


def test_subscriptions() -> None:
    data = subscription("t", "a || TagA", version_ms=7)
    assert (data.tags_set, data.code_set, data.sub_string, data.sub_version) == (
        ["a", "TagA"],
        [97, 2598919],
        "a || TagA",
        7,
    )
    assert subscription("t").sub_string == "*"
    sql = subscription("t", Sql("price > 5"))
    assert (sql.expression_type, sql.sub_string, sql.tags_set) == ("SQL92", "price > 5", [])
    with pytest.raises(ValueError, match="empty"):
        Sql(" ")


def test_the_client_compares_text() -> None:
    assert is_wanted("a", None)
    assert is_wanted("a", ["a", "b"])
    assert not is_wanted(None, ["a"])


# Logging.


def test_a_complaint_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("aerobee.log.time.monotonic", lambda: now[0])
    complaints = Complaints(logging.getLogger("aerobee.test"))
    for number in range(10):
        complaints.warn("bad", "number %d", number)
    complaints.warn("worse", "another")
    now[0] += 61
    complaints.warn("bad", "number %d", 10)
    assert [record.getMessage() for record in caplog.records] == [
        "number 0", "another", "number 10 (and 9 more since the last such line)",
    ]  # fmt: skip


def test_reasons_do_not_pile_up() -> None:
    complaints = Complaints(logging.getLogger("aerobee.test"))
    for number in range(REASONS_MAX + 5):
        complaints.warn(str(number), "x")
    assert len(complaints._said) <= REASONS_MAX


# Time.


async def test_a_manual_clock_jumps_from_sleeper_to_sleeper() -> None:
    clock, woken = ManualClock(now_ms=1_000_000), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.now_ms()))

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (7200, 1, 60)]
    await clock.advance(3600)
    assert woken == [(1, 1_001_000), (60, 1_060_000)]
    await clock.advance(3600)
    assert woken[-1] == (7200, 8_200_000)
    assert clock.monotonic() == 7200
    await asyncio.gather(*tasks)


def test_what_python_reads_letter_by_letter_may_be_a_quarter_as_long() -> None:
    json = b'{"a":"%s"}' % (b"x" * 600_000)
    check_body(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, json)
    with pytest.raises(MalformedRequest, match="no strict JSON"):
        check_body(RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, json.replace(b'"', b"'"))
    check_body(RequestCode.UPDATE_BROKER_CONFIG, b"a=1\n" * 60_000)
    for code in (RequestCode.UPDATE_BROKER_CONFIG, RequestCode.UPDATE_NAMESRV_CONFIG):
        with pytest.raises(MalformedRequest, match="the limit is 262144"):
            check_body(code, b"a=1\n" * 70_000)
