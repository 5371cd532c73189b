"""The command line of the daemons, without starting one."""

from __future__ import annotations

import errno

import pytest

from aerobee.cli import daemon
from aerobee.cli.daemon import UsageError, explain, parse
from aerobee.options import Options, setting


class Sample(Options):
    ENVIRONMENT = "SAMPLE_"
    listen_port = setting(10911, "A port.", low=0, high=65535)
    broker_ip1 = setting("", "An address.", name="brokerIP1")
    namesrv_addr = setting("", "Name servers.")


class Server:
    async def start(self) -> None:
        raise OSError(errno.EADDRINUSE, "error while attempting to bind on address ('127.0.0.1', 9876): address in use")

    async def stop(self) -> None:
        return


def test_flags_in_both_spellings() -> None:
    line = parse(["-c", "b.conf", "-n", "a:1;b:2", "--listen-port", "0", "--brokerIP1=10.0.0.1", "-p"], Sample)
    assert (line.file, line.show) == ("b.conf", "all")
    assert line.flags == {"namesrvAddr": "a:1;b:2", "listenPort": "0", "brokerIP1": "10.0.0.1"}
    assert parse(["--configFile", "x", "--namesrvAddr", "y"], Sample).file == "x"
    assert parse(["-m"], Sample).show == "changed"
    assert parse(["--log-level", "debug"], Sample).level == "DEBUG"
    assert parse(["--stop-at-eof"], Sample).stop_at_eof


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lisen-port", "1"], "unknown argument '--lisen-port'"),
        (["broker.conf"], "unknown argument 'broker.conf'"),
        (["-c"], "-c needs a value"),
        (["--log-level", "loud"], "DEBUG, INFO"),
        (["-x"], "unknown argument '-x'"),
    ],
)
def test_what_cannot_be_understood(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(arguments, Sample)


def run(*arguments: str) -> int:
    return daemon.run("sample", "A sample.", Sample, lambda options: Server(), lambda *_: "ready", list(arguments))


def test_exit_codes_and_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--listen-port", "x") == 2
    assert capsys.readouterr().err == "sample: listenPort must be a whole number, not 'x'\n"
    assert run("-h") == 0
    assert "--broker-ip1" in capsys.readouterr().out
    assert run("-m", "--listen-port", "1") == 0
    assert capsys.readouterr().out == "listenPort=1\n"
    assert run("-p") == 0
    assert capsys.readouterr().out == "brokerIP1=\nlistenPort=10911\nnamesrvAddr=\n"
    assert run() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("sample: port 9876 on 127.0.0.1 is taken")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.EADDRNOTAVAIL, "… ('192.0.2.1', 1): cannot assign"),
            "192.0.2.1 is not an address of this machine",
        ),
        (OSError(errno.EACCES, "… ('0.0.0.0', 80): permission denied"), "choose a listenPort above 1023"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/store"),
            "cannot use /data/store: Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device", b"/data"), "cannot use /data: No space left on device"),
        (OSError("strange"), "strange"),
    ],
)
def test_an_os_error_is_one_sentence(error: OSError, words: str) -> None:
    assert words in explain(error)
    assert "\n" not in explain(error)
