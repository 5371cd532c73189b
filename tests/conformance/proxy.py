"""Apache's proxy, and the official client that speaks gRPC to it: `grpc/`, the jars in `build/conformance/grpc`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import apache

SOURCE = Path(__file__).with_name("grpc")
BUILD = apache.BUILD / "grpc"
LIB = BUILD / "lib"
PROGRAM = BUILD / "program.jar"
PORT = 8081


def unavailable() -> str | None:
    """Why they cannot run here, or None when they can."""
    missing = [name for name in ("java", "javac") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing: the proxy needs a JDK, 17 or later"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (apache.BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            apache.resolve(SOURCE / "pom.xml", LIB)
        except RuntimeError as error:
            return str(error)
        apache.compile_program([SOURCE / "Grpc.java"], _jars("rocketmq-client-java-*.jar"), PROGRAM)
    return None


def _jars(pattern: str) -> str:
    return ":".join(map(str, sorted(LIB.glob(pattern), reverse=True)))


def start(directory: Path, cluster: apache.Cluster) -> apache.Process:
    """Starts a proxy before the cluster, and waits until it listens."""
    directory.mkdir(parents=True)
    config = directory / "proxy.json"
    settings = {
        "proxyMode": "CLUSTER",
        "rocketMQClusterName": cluster.cluster_name,
        "namesrvAddr": cluster.namesrv_address,
        "grpcServerPort": PORT,
        "remotingListenPort": PORT - 1,
        "localServeAddr": "127.0.0.1",
    }
    config.write_text(json.dumps(settings))
    # The client's jar brings all it needs with it, in versions of its own.
    jars = ":".join(path for path in _jars("*.jar").split(":") if "rocketmq-client-java" not in path)
    command = ["java", *apache.SMALL_JVM, "-Dtls.enable=false", *apache.java_home(directory, "proxy"), "-cp", jars]
    command += ["org.apache.rocketmq.proxy.ProxyStartup", "-pc", str(config)]
    process = apache.Process("proxy", command, directory, {"ROCKETMQ_HOME": str(directory)})
    process.ready(_listens)
    return process


def _listens() -> bool:
    apache.dial(f"127.0.0.1:{PORT}").close()
    return True


def run_client(directory: Path, topic: str) -> dict[str, list[str]]:
    """What came of the program's run, by name; see `grpc/Grpc.java`. Raises AssertionError with what it said."""
    jars = f"{PROGRAM}:{_jars('rocketmq-client-java-*.jar')}"
    command = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", *apache.java_home(directory, "client"), "-cp", jars]
    command += [f"-Drocketmq.log.root={directory}", "Grpc", f"127.0.0.1:{PORT}", topic]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=directory, env={**os.environ, "HOME": str(directory)}, timeout=240
    )
    shutil.rmtree(apache.temporary(directory, "client"), ignore_errors=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line]
    return {name: values.split(",") for name, values in lines}
