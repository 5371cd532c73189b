"""Settings: where they come from, who wins, what is refused and with which words."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerobee.broker.options import BrokerOptions
from aerobee.cli.daemon import parse
from aerobee.nameserver.options import NameServerOptions
from aerobee.options import (
    Options,
    OptionsError,
    Refusal,
    format_properties,
    parse_properties,
    properties_dict,
    rewrite_properties,
    setting,
)

DANGEROUS = ("path", "dir", "file", "command", "home", "plugin", "provider", "addr", "brokerip", "store")


class Sample(Options):
    ENVIRONMENT = "SAMPLE_"
    IGNORED: ClassVar = {"sendMessageThreadPoolNums": "there are no thread pools"}
    REFUSED: ClassVar = {"aclEnable": Refusal(("", "false"), "there is no access control")}

    listen_port = setting(10911, "A port.", low=0, high=65535)
    broker_ip1 = setting("", "An address.", name="brokerIP1")
    namesrv_addr = setting("", "Name servers.", variable="NAMESRV_ADDR")
    ratio = setting(0.8, "A ratio.", low=0.0, high=1.0)
    filters = setting(False, "A switch.", live=True)
    role = setting("ASYNC_MASTER", "A choice.", choices=("ASYNC_MASTER", "SLAVE"))
    store = setting("", "A path.", factory=lambda: "/computed", remote=False)

    def check(self) -> list[str]:
        return ["role SLAVE needs filters"] if self.role == "SLAVE" and not self.filters else []


def problems(error: pytest.ExceptionInfo[OptionsError]) -> list[str]:
    return error.value.problems


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "b.properties"
    file.write_text("listenPort=1\nbrokerIP1=file\nratio=0.5\nnamesrvAddr=file:9876\n")
    options = Sample.load(
        file=file,
        environ={"SAMPLE_BROKER_IP1": "env", "SAMPLE_RATIO": "0.25", "OTHER": "x", "NAMESRV_ADDR": "env:9876"},
        flags={"ratio": 0.125},
    )
    assert (options.listen_port, options.broker_ip1, options.ratio) == (1, "env", 0.125)
    assert options.namesrv_addr == "env:9876"
    assert options.store == "/computed"


def test_every_problem_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "b.properties"
    file.write_text("# comment\nlisenPort=1\nratio=2\nfilters=yes\nrole=MASTER\nlistenPort=1e3\n")
    with pytest.raises(OptionsError) as error:
        Sample.load(file=file, environ={"SAMPLE_LISTENPORT": "1"})
    assert problems(error) == [
        "unknown environment variable SAMPLE_LISTENPORT; the nearest known key is 'SAMPLE_LISTEN_PORT'",
        f"{file}:2: unknown key 'lisenPort'; the nearest known key is 'listenPort'",
        f"{file}:3: ratio must be at most 1, not 2",
        f"{file}:4: filters must be true or false, not 'yes'",
        f"{file}:5: role must be one of ASYNC_MASTER, SLAVE, not 'MASTER'",
        f"{file}:6: listenPort must be a whole number, not '1e3'",
    ]


def test_numbers_that_are_none_are_refused() -> None:
    for text in ("nan", "inf", "-inf", ""):
        with pytest.raises(OptionsError):
            Sample.load(flags={"ratio": text})


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"^cannot read .*none\.properties: No such file or directory$"):
        Sample.load(file=tmp_path / "none.properties")


def test_rules_between_settings_are_checked_at_the_end() -> None:
    with pytest.raises(OptionsError, match="SLAVE needs filters"):
        Sample.load(flags={"role": "SLAVE"})
    assert Sample.load(flags={"role": "SLAVE", "filters": "true"}).role == "SLAVE"


def test_a_key_without_effect_is_said_once_and_a_faked_protection_is_refused() -> None:
    options = Sample.load(flags={"sendMessageThreadPoolNums": "3", "aclEnable": "false"})
    assert options.notes == ["sendMessageThreadPoolNums has no effect: there are no thread pools"]
    with pytest.raises(OptionsError, match="aclEnable=true cannot be honoured: there is no access control"):
        Sample.load(flags={"aclEnable": "true"})


def test_keyword_arguments_are_checked_too() -> None:
    assert Sample(listen_port=0).listen_port == 0
    with pytest.raises(OptionsError, match="listen_port must be at most 65535"):
        Sample(listen_port=70000)
    with pytest.raises(OptionsError, match="nearest known key is 'listen_port'"):
        Sample(listenport=1)


def test_live_changes_apply_at_once_others_at_the_next_start() -> None:
    options = Sample()
    change = options.change({"filters": "true", "listenPort": "1", "sendMessageThreadPoolNums": "8"})
    assert (options.filters, options.listen_port) == (True, 10911)
    assert (change.live, change.at_restart) == ({"filters": True}, {"listenPort": 1})
    assert change.notes == ["sendMessageThreadPoolNums has no effect: there are no thread pools"]
    assert "listenPort=1\n" in options.to_properties()


@pytest.mark.parametrize(
    "texts",
    [
        {"filters": "true", "store": "/etc"},
        {"filters": "true", "listenPort": "-1"},
        {"filters": "true", "nobody": "x"},
        {"filters": "true", "aclEnable": "true"},
        {"filters": "false", "role": "SLAVE"},
    ],
)
def test_a_change_happens_as_a_whole_or_not_at_all(texts: dict[str, str]) -> None:
    options = Sample()
    before = options.items()
    with pytest.raises(OptionsError):
        options.change(texts)
    assert options.items() == before


def test_a_change_full_of_unknown_keys_is_refused_in_a_moment() -> None:
    """To look for the nearest key of each of 40 kB of them took a broker half a minute."""
    texts = {f"listenPort{number}": "1" for number in range(2000)}
    before = time.process_time()
    with pytest.raises(OptionsError) as caught:
        BrokerOptions().change(texts)
    assert time.process_time() - before < 0.5
    assert "nearest known key is 'listenPort'" in caught.value.problems[0]
    assert len(caught.value.problems) <= 11 and "1990 more" in caught.value.problems[-1]


@pytest.mark.parametrize("options", [BrokerOptions, NameServerOptions])
def test_every_whole_number_has_two_bounds(options: type[Options]) -> None:
    rows = [row for row in options.ROWS.values() if row.kind is int]
    assert not [row.name for row in rows if row.low is None or row.high is None]


@pytest.mark.parametrize("name", ["syncFlushTimeout", "transactionCheckInterval", "shortPollingTimeMills"])
def test_whole_numbers_go_up_to_what_a_java_int_holds(name: str) -> None:
    """With one that no timer holds the broker did not start again, or a mechanism of it ended."""
    BrokerOptions().change({name: str(2**31 - 1)})
    for number in (2**31, 10**30, 10**400):
        with pytest.raises(OptionsError, match=f"{name} must be at most 2147483647, not"):
            BrokerOptions().change({name: str(number)})


def test_what_names_a_path_can_only_be_changed_locally() -> None:
    """CVE-2023-33246, CVE-2023-37582: no setting that names a path or a command can be changed remotely."""
    with pytest.raises(OptionsError, match="store can only be changed in the configuration file"):
        Sample().change({"store": "/etc/cron.d"})
    for options, keys in (
        (BrokerOptions, "brokerConfigPath configBlackList rocketmqHome authConfigPath storePathEpochFile"),
        (NameServerOptions, "controllerStorePath configBlackList rocketmqHome"),
    ):
        for key in keys.split():  # of no effect, but nobody is to believe that it was taken
            with pytest.raises(OptionsError, match=f"{key} can only be changed in the configuration file"):
                options().change({key: "/tmp/x"})
    BrokerOptions().change({"syncFromLastFile": "true"})  # of no effect either, but no path
    for options in (BrokerOptions, NameServerOptions):
        for row in options.ROWS.values():
            words = row.name.lower()
            if row.kind is str and any(word in words for word in DANGEROUS):
                assert not row.remote, f"{row.name} can be changed remotely"


def test_flags_and_variables_of_every_setting_follow_from_its_key() -> None:
    for options in (BrokerOptions, NameServerOptions):
        for row in options.ROWS.values():
            assert row.attribute.replace("_", "") == row.name.lower(), row.name
    key, variable = "serverChannelMaxIdleTimeSeconds", "AEROBEE_BROKER_SERVER_CHANNEL_MAX_IDLE_TIME_SECONDS"
    assert BrokerOptions.load(environ={variable: "7"}).get(key) == 7
    assert parse(["--server-channel-max-idle-time-seconds", "7"], BrokerOptions).flags == {key: "7"}


async def test_a_change_is_kept_in_the_file_before_it_counts(tmp_path: Path) -> None:
    file = tmp_path / "b.properties"
    file.write_text("ratio=0.25\n")
    options = Sample.load(file=file)
    change = await options.change_and_keep({"filters": "true", "ratio": "0.5"})
    assert (change.live, change.at_restart, change.not_kept) == ({"filters": True}, {"ratio": 0.5}, "")
    assert (options.filters, options.ratio) == (True, 0.25)
    assert file.read_text() == "ratio=0.5\nfilters=true\n"


async def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "b.properties"
    file.write_text("")
    options = Sample.load(file=file)
    await asyncio.gather(*(options.change_and_keep({name: "1"}) for name in ("listenPort", "brokerIP1", "ratio")))
    assert sorted(file.read_text().split()) == ["brokerIP1=1", "listenPort=1", "ratio=1.0"]


@pytest.mark.parametrize("file", [None, "b.properties"])
async def test_what_no_file_keeps_is_said_and_refused_when_it_would_never_count(
    tmp_path: Path, file: str | None
) -> None:
    options, why = Sample(), "no file was given at the start (-c) to keep it in"
    if file is not None:
        path = tmp_path / "gone" / file
        path.parent.mkdir()
        path.write_text("")
        options = Sample.load(file=path)
        path.unlink()
        path.parent.rmdir()
        why = f"{path} could not be written (No such file or directory)"
    assert (await options.change_and_keep({"filters": "true"})).not_kept == why
    assert options.filters
    assert (await options.change_and_keep({"sendMessageThreadPoolNums": "8"})).not_kept == "", "nothing to keep"
    before = options.items()
    with pytest.raises(OptionsError) as caught:
        await options.change_and_keep({"filters": "false", "ratio": "0.5", "listenPort": "1"})
    assert problems(caught) == [f"ratio, listenPort would count from the next start only, and {why}"]
    assert options.items() == before


def test_saving_keeps_the_other_lines(tmp_path: Path) -> None:
    file = tmp_path / "b.properties"
    file.write_text("# mine\nlistenPort : 1\n\n  filters=\\\n  false\n! end\n")
    options = Sample.load(file=file)
    change = options.change({"filters": "true", "ratio": "0.5"})
    assert options.save({**change.live, **change.at_restart}) == file
    assert file.read_text() == "# mine\nlistenPort : 1\n\nfilters=true\n! end\nratio=0.5\n"
    assert Sample.load(file=file).filters is True
    assert [path.name for path in tmp_path.iterdir()] == ["b.properties"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1\nb:2\nc 3\nd\t=\t4\ne", {"a": "1", "b": "2", "c": "3", "d": "4", "e": ""}),
        ("  a = b = c ", {"a": "b = c "}),
        ("a=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}),
        ("# no\\\na=1\n  ! no\n", {"a": "1"}),
        ("a=x\\\n   y\\\n\tz", {"a": "xyz"}),
        ("a=x\\\\\nb=2", {"a": "x\\", "b": "2"}),
        ("a=x\\", {"a": "x"}),
        ("a\\ b\\:c\\=d=1", {"a b:c=d": "1"}),
        ("a=\\t\\n\\q\\u00e9\\uD83D\\ude00", {"a": "\t\nqé😀"}),
        ("a=1\na=2", {"a": "2"}),
        ("", {}),
    ],
)
def test_properties_are_read_as_java_reads_them(text: str, expected: dict[str, str]) -> None:
    assert properties_dict(text) == expected


def test_a_broken_escape_names_its_line() -> None:
    with pytest.raises(OptionsError, match=r"^x:2: '\\u12' is not a"):
        parse_properties("a=1\nb=\\u12", "x")


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(KEYS, TEXTS))
def test_what_is_written_is_read_back(values: dict[str, str]) -> None:
    text = format_properties(values)
    assert text.isascii()
    assert properties_dict(text) == values


@given(st.dictionaries(KEYS, TEXTS), st.dictionaries(KEYS, TEXTS))
def test_rewriting_sets_exactly_the_given_keys(before: dict[str, str], changes: dict[str, str]) -> None:
    assert properties_dict(rewrite_properties(format_properties(before), changes)) == before | changes


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_properties(text)
    except OptionsError:
        pass


@pytest.mark.parametrize("options", [BrokerOptions, NameServerOptions])
def test_every_row_is_explained_and_its_default_is_within_bounds(options: type[Options]) -> None:
    for row in options.ROWS.values():
        assert row.about.endswith("."), f"{row.name}: the sentence ends with a full stop"
        if row.factory is None:
            text = str(row.default).lower() if row.kind is bool else str(row.default)
            assert row.parse(text) == row.default, row.name
        assert row.name not in options.REFUSED


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"namesrv_addr": "10.0.0.1:9876;somewhere"}, "namesrvAddr must be host:port, several joined by ';', not"),
        ({"namesrv_addr": "10.0.0.1:98765"}, "'10.0.0.1:98765'"),
        ({"bind_address": ""}, "bindAddress must not be empty; 0.0.0.0 stands for all addresses"),
        ({"store_path_root_dir": ""}, "storePathRootDir must not be empty"),
        ({"listen_port": 2}, "listenPort must be above 2, the second port is below: 2"),
        ({"broker_role": "SLAVE"}, "'SLAVE': there is no replication, every broker is a master of its own"),
        ({"broker_id": 1}, "not 1: there is no replication"),
        ({"listeners": "10.0.0.1:10911"}, "listeners must be NAME://HOST:PORT, several joined by ';', not '10.0"),
        ({"listeners": "a://x:1;a://y:2"}, "listeners names 'a' twice"),
        ({"listeners": "main://x:1"}, "listeners may not use the name 'main'"),
        ({"listeners": "a://x:0;b://x:2"}, "listeners: the port of 'b' must be above 2, the second port is below: 2"),
        ({"listeners": "a://x:9", "advertised_listeners": "b://x:1"}, "advertisedListeners names 'b', which listeners"),
        ({"advertised_listeners": "x"}, "advertisedListeners must be NAME://HOST:PORT"),
        (
            {"store_path_root_dir": "/s", "store_path_commit_log": "/disk2/log"},
            "storePathCommitLog=/disk2/log cannot be honoured: the log is in /s/commitlog. Make that a symbolic link "
            "to /disk2/log, or mount the disk there",
        ),
        ({"store_path_root_dir": "/s", "store_path_commit_log": "/s/commitlog,/t/commitlog"}, "cannot be honoured"),
    ],
)  # fmt: skip
def test_what_a_broker_cannot_honour_is_one_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionsError) as caught:
        BrokerOptions(**values)
    assert len(caught.value.problems) == 1 and words in caught.value.problems[0]


def test_a_path_of_the_log_that_is_where_the_log_is(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for there in ("", f"{root}/commitlog", f"{root}/../store/commitlog/"):
        BrokerOptions(store_path_root_dir=str(root), store_path_commit_log=there)
    root.mkdir()
    (root / "commitlog").symlink_to(tmp_path / "disk2")
    BrokerOptions(store_path_root_dir=str(root), store_path_commit_log=str(tmp_path / "disk2"))


def test_further_places_of_the_log_are_refused() -> None:
    assert not BrokerOptions.load(flags={"readOnlyCommitLogStorePaths": ""}).notes
    with pytest.raises(OptionsError, match="readOnlyCommitLogStorePaths=/a,/b cannot be honoured"):
        BrokerOptions.load(flags={"readOnlyCommitLogStorePaths": "/a,/b"})


def test_addresses_of_name_servers() -> None:
    options = BrokerOptions(namesrv_addr=" 10.0.0.1:9876;[::1]:9876, ns_2.example-x:1 ; ")
    assert options.name_servers == ["10.0.0.1:9876", "[::1]:9876", "ns_2.example-x:1"]


def test_files_of_older_apache_versions_are_read(tmp_path: Path) -> None:
    """Keys that the manuals of RocketMQ 4 name and version 5 does not read any more are said once, not refused."""
    file = tmp_path / "broker.conf"
    file.write_text(
        "mapedFileSizeCommitLog=1073741824\nmapedFileSizeConsumeQueue=300000\nstorePathConsumeQueue=/s/consumequeue\n"
        "storePathConsumerQueue=/s/consumequeue\nstorePathIndex=/s/index\nstoreCheckpoint=/s/checkpoint\nabortFile=/s/abort\n"
        "checkTransactionMessageEnable=false\n"
    )
    assert len(BrokerOptions.load(file=file).notes) == 8
