"""No official properties file is refused: every field of Apache's configuration classes is a known key."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aerobee.broker.options import BrokerOptions
from aerobee.nameserver.options import NameServerOptions
from aerobee.options import Options

PROGRAM = """
import java.lang.reflect.*;
public class Fields {
    public static void main(String[] names) throws Exception {
        for (String name : names)
            for (Class<?> c = Class.forName(name, false, Fields.class.getClassLoader());
                    c != Object.class; c = c.getSuperclass())
                for (Field f : c.getDeclaredFields())
                    if (!Modifier.isStatic(f.getModifiers())) System.out.println(f.getName());
    }
}
"""
VERSION = "5.5.0"
PREFIX = "org.apache.rocketmq."
BROKER = ["common.BrokerConfig", "store.config.MessageStoreConfig", "remoting.netty.NettyServerConfig",
          "remoting.netty.NettyClientConfig", "auth.config.AuthConfig", "tieredstore.MessageStoreConfig"]  # fmt: skip
NAMESERVER = ["common.namesrv.NamesrvConfig", "remoting.netty.NettyServerConfig", "remoting.netty.NettyClientConfig"]


@pytest.mark.apache
@pytest.mark.parametrize(("options", "classes"), [(BrokerOptions, BROKER), (NameServerOptions, NAMESERVER)])
def test_every_key_of_apache_is_known(options: type[Options], classes: list[str], tmp_path: Path) -> None:
    jars = list((Path.home() / ".m2/repository/org/apache/rocketmq").glob(f"*/{VERSION}/*-{VERSION}.jar"))
    if shutil.which("java") is None or not jars:
        pytest.skip("needs Java 17 and Apache RocketMQ's jars in ~/.m2 (make bench gets them)")
    program = tmp_path / "Fields.java"
    program.write_text(PROGRAM)
    everything = ":".join(str(jar) for jar in (Path.home() / ".m2/repository").rglob("*.jar"))
    found = subprocess.run(
        ["java", "-cp", everything, str(program), *(PREFIX + name for name in classes)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    fields = set(re.findall(r"^\w+$", found.stdout, re.MULTILINE))
    assert len(fields) > 20
    assert sorted(fields - {*options.ROWS, *options.IGNORED, *options.REFUSED}) == []
