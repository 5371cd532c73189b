"""Every body, header and number is what the Java library makes of it: `java/PrintProtocol.java` printed them."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from msgspec import structs

from aerobee import errors
from aerobee.protocol import bodies, fastjson, headers
from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.topics import V5_0_0, RegisterBrokerBody
from aerobee.protocol.codes import ROWS, RequestCode, ResponseCode
from aerobee.protocol.command import LANGUAGE_NAMES, VERSION
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers import Header

DATA = Path(__file__).parent / "data"


def _classes(package: ModuleType, base: type) -> dict[str, Any]:
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        contents = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        for name, value in contents.items():
            if isinstance(value, type) and issubclass(value, base) and value is not base:
                found[name] = value
    return found


BODIES = _classes(bodies, Body)
HEADERS = _classes(headers, Header)
BODY_LINES = [line.split("\t", 1) for line in (DATA / "bodies.jsonl").read_text().splitlines()]
UNUSED_BODIES = {"ConsumeByWho"}
"""What no request carries any more."""

ASK_FOR_NOTHING = {
    "CreateTopicListRequestBody": ["topic_config_list"],
    "SubscriptionGroupList": ["group_config_list"],
    "UnlockBatchRequestBody": ["consumer_group"],
    "QueryAssignmentRequestBody": ["topic", "consumer_group", "message_model"],
}
"""Bodies without which Apache's broker fails as well, by what they need."""

RENAMED = {
    "GetTopicsByClusterRequestHeader": "GetTopicsByCluster",
    "UnRegisterBrokerRequestHeader": "UnRegisterBroker",
    "ConsumeMessageDirectlyResultRequestHeader": "ConsumeMessageDirectly",
    "QueryCorrectionOffsetHeader": "QueryCorrectionOffset",
    "GetConsumeStatsInBrokerHeader": "GetBrokerConsumeStats",
    "ResetMasterFlushOffsetHeader": "ResetMasterFlushOffset",
    "SendMessageRequestHeaderV2": "SendMessageV2",
    "ExchangeHAInfoResponseHeader": "ExchangeHAInfo",
}
TYPES = {
    "String": str, "Integer": int, "int": int, "Long": int, "long": int, "Boolean": bool, "boolean": bool,
    "BoundaryType": str,
}  # fmt: skip
EXTRA = {"brokerName", "bname", "n"}
"""Fields that Java keeps in a common base class."""


@pytest.mark.parametrize(("name", "text"), BODY_LINES, ids=[name for name, _ in BODY_LINES])
def test_a_body_is_read_and_written_as_java_does(name: str, text: str) -> None:
    if name in UNUSED_BODIES:
        pytest.skip("no request carries it")
    if name == "MessageQueue":
        assert fastjson.dumps(MessageQueue("s2", "s3", 4)).decode() == text
        return
    body = BODIES[name].from_json(text)
    assert body.to_json().decode() == text
    assert BODIES[name].from_dict(body.to_dict()) == body
    assert BODIES[name].from_json(text.encode()) == body
    standard = body.to_json(standard=True)
    assert BODIES[name].from_json(standard) == body


def test_an_empty_object_is_every_body_that_asks_for_something_without_fields() -> None:
    for name, kind in BODIES.items():
        needed = ASK_FOR_NOTHING.get(name)
        assert [field.name for field in structs.fields(kind) if field.required] == (needed or [])
        if needed is None:
            assert kind.from_json(b"{}") == kind()
        else:
            with pytest.raises(errors.MalformedRequest, match="missing required field"):
                kind.from_json(b"{}")


def test_objects_do_not_share_their_defaults() -> None:
    for name, kind in BODIES.items():
        needed = dict.fromkeys(ASK_FOR_NOTHING.get(name, ()))
        one, other = kind(**needed), kind(**needed)
        for name in kind.__struct_fields__:
            value = getattr(one, name)
            if isinstance(value, dict | list | Body):
                assert value is not getattr(other, name), (kind, name)


@pytest.mark.parametrize("line", (DATA / "headers.txt").read_text().splitlines(), ids=lambda line: line.split("\t")[0])
def test_a_header_has_javas_fields(line: str) -> None:
    java, _, described = line.partition("\t")
    name = RENAMED.get(java) or java.replace("RequestHeader", "").replace("ResponseHeader", "Reply")
    theirs = {}
    for entry in described.split():
        field, _, kind = entry.partition(":")
        theirs[field] = (TYPES[kind.rstrip("!")], kind.endswith("!"))
    if not theirs:
        assert name not in HEADERS, "a header without fields needs no class"
        return
    kind = HEADERS[name]
    ours = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    assert theirs.keys() - ours.keys() == set()
    assert ours.keys() - theirs.keys() <= EXTRA
    # Filled with text of the right kind, all of it is understood and comes back.
    sample = {str: "x", int: "7", bool: "true"}
    fields = {field: sample[python] for field, (python, _) in theirs.items()}
    header = kind.from_fields(fields)
    for field, (python, _) in theirs.items():
        assert getattr(header, ours[field]) == {str: "x", int: 7, bool: True}[python]
    assert {key: header.to_fields()[key] for key in fields} == fields


def test_numbers_and_names() -> None:
    for line in (DATA / "codes.txt").read_text().splitlines():
        kind, name, number = line.split("\t")
        if kind == "request":
            assert RequestCode[name] == int(number)
        elif kind == "response":
            assert ResponseCode[name] == int(number)
        elif kind == "language":
            assert LANGUAGE_NAMES[int(number)] == name
        elif name == "V5_5_0":
            assert int(number) == VERSION
        elif name == "V5_0_0":
            assert int(number) == V5_0_0


def test_every_request_has_its_row_and_right() -> None:
    assert set(ROWS) == set(RequestCode)
    for row in ROWS.values():
        needs_right = any(server.value != "client" for server in row.servers)
        assert bool(row.rights) == needs_right, row
        for right in row.rights:
            if right.field not in (None, "*", "body"):
                assert row.header is not None, row
                assert right.field in row.header.__struct_fields__, row


def test_every_refusal_has_its_class() -> None:
    for code in ResponseCode:
        if code is not ResponseCode.SUCCESS:
            error = errors.error_for(code, "because")
            assert type(error) is not errors.ServerError
            assert (error.code, error.remark) == (code, "because")
    assert type(errors.error_for(12345, None)) is errors.ServerError


@pytest.mark.parametrize("compressed", [True, False])
def test_a_registration_in_both_forms(compressed: bool) -> None:
    plain = (DATA / "registration.json").read_bytes().strip()
    packed = bytes.fromhex((DATA / "registration.hex").read_text().strip())
    body = RegisterBrokerBody.decode(packed if compressed else plain, compressed=compressed)
    wrapper = body.topic_config_serialize_wrapper
    assert body.filter_server_list == ["10.0.0.9:1"]
    assert wrapper.data_version.counter == 7
    assert wrapper.topic_config_table["orders"].attributes == {"message.type": "NORMAL", "a b": "c d"}
    assert wrapper.topic_config_table["%RETRY%g"].perm == 2
    assert wrapper.topic_queue_mapping_info_map["static"].curr_id_map == {0: 1, 2: 3}
    again = RegisterBrokerBody.decode(body.encode(compressed=compressed), compressed=compressed)
    assert again == body
    if not compressed:
        assert body.to_json() == plain


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_damaged_registration_is_refused(cut: int) -> None:
    packed = bytes.fromhex((DATA / "registration.hex").read_text().strip())
    with pytest.raises(errors.MalformedRequest):
        RegisterBrokerBody.decode(packed[:cut], compressed=True)
