"""The kinds of servers: how each is installed, prepared, started, asked whether it is ready, and stopped.

What is odd about each is said beside it; the rest is alike and stands in `server.py`.
"""

from __future__ import annotations

import base64
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from deploy.servers import checks, install
from deploy.servers.install import Tell

S3_KEY, S3_SECRET = "latebind", "latebind-secret"
_CONFIG = Path(__file__).parent / "config"


@dataclass(frozen=True)
class Kind:
    """One kind of server. `ports` are names; `start` returns the command for a folder and the numbers of those ports."""

    name: str
    ports: tuple[str, ...]
    install: Callable[[Tell], Path]
    start: Callable[[Path, Path, Mapping[str, int]], Sequence[str]]
    ready: Callable[[Mapping[str, int]], None]
    addresses: Callable[[Mapping[str, int]], Mapping[str, str]]
    environment: Mapping[str, str]
    stop_signal: signal.Signals = signal.SIGTERM
    ready_within_s: float = 180.0


def _fill(template: str, target: Path, values: Mapping[str, object]) -> None:
    target.write_text(Template((_CONFIG / template).read_text()).substitute({name: str(value) for name, value in values.items()}))


def _start_kafka(jars: Path, folder: Path, ports: Mapping[str, int]) -> Sequence[str]:
    _fill("kafka.properties", folder / "kafka.properties", {"folder": folder, "advertised": ports["broker"], **ports})
    shutil.copy(_CONFIG / "log4j2.yaml", folder / "log4j2.yaml")
    common = ["-cp", f"{jars}/*", f"-Dlog4j2.configurationFile={folder / 'log4j2.yaml'}", "-Djava.awt.headless=true"]
    if not (folder / "log" / "meta.properties").exists():
        cluster = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        tool = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *common, "kafka.tools.StorageTool"]
        command = [*tool, "format", "--standalone", "-t", f"A{cluster[1:]}", "-c", str(folder / "kafka.properties")]
        subprocess.run(command, check=True, capture_output=True)
    return [
        "java",
        "-Xms256m",
        "-Xmx512m",
        # A start costs half of the processor time without the second compiler and the concurrent collector.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        *common,
        "kafka.Kafka",
        str(folder / "kafka.properties"),
    ]


def _start_postgres(programs: Path, folder: Path, ports: Mapping[str, int]) -> Sequence[str]:
    """PostgreSQL refuses root, so root starts it as another user that may still reach a checkout below a private home."""
    prefix: list[str] = []
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    if os.getuid() == 0:
        user = _unprivileged()
        caps = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
        prefix = ["setpriv", "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups", *caps, "env", "HOME=/tmp"]
        os.chown(data, user.pw_uid, user.pw_gid)
    if not (data / "PG_VERSION").exists():
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "latebind",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        subprocess.run([*prefix, *initdb], check=True, capture_output=True)
    # fsync=off survives kill -9 of every process (not of the machine); synchronous_commit=off would not.
    settings = (
        "fsync=off",
        "full_page_writes=off",
        "synchronous_commit=on",
        "max_connections=300",
        "shared_buffers=64MB",
        "max_wal_size=512MB",
    )
    options = [part for setting in settings for part in ("-c", setting)]
    return [*prefix, str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(ports["sql"]), "-k", "", *options]


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _start_seaweedfs(program: Path, folder: Path, ports: Mapping[str, int]) -> Sequence[str]:
    """It opens ports nobody asked for, uses the machine's address and sends telemetry, unless told not to."""
    _fill("seaweedfs.json", folder / "s3.json", {"key": S3_KEY, "secret": S3_SECRET})
    data = folder / "data"
    data.mkdir(exist_ok=True)
    listen = [f"-{name.replace('_', '.')}={number}" for name, number in ports.items()]
    quick = ["-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-volume.preStopSeconds=0", "-volume.index=memory"]
    # Every bucket takes volumes of its own; as many as fit on the disk (0) are used up by some dozens of tests.
    small = ["-master.volumeSizeLimitMB=256", "-volume.max=100000", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    serve = ["-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}"]
    return [str(program), "-logdir", str(folder), "server", "-dir", str(data), *serve, *listen, *quick, *small]


def _start_minio(program: Path, folder: Path, ports: Mapping[str, int]) -> Sequence[str]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    return [str(program), "server", str(data), "--address", f"127.0.0.1:{ports['s3']}", "--quiet"]


def _start_clickhouse(program: Path, folder: Path, ports: Mapping[str, int]) -> Sequence[str]:
    for name in ("data", "tmp", "format_schemas", "user_files", "log"):
        (folder / name).mkdir(exist_ok=True)
    _fill("clickhouse.xml", folder / "config.xml", {"folder": folder, **ports})
    shutil.copy(_CONFIG / "clickhouse-users.xml", folder / "users.xml")
    return [str(program), f"--config-file={folder / 'config.xml'}"]


def _s3_url(port: int) -> str:
    return f"s3+http://{S3_KEY}:{S3_SECRET}@127.0.0.1:{port}/latebind"


def _postgres_addresses(name: str) -> Callable[[Mapping[str, int]], Mapping[str, str]]:
    def addresses(ports: Mapping[str, int]) -> Mapping[str, str]:
        place = f"127.0.0.1:{ports['sql']}/latebind"
        return {f"{name}_URL": f"postgresql://latebind_app@{place}", f"{name}_ADMIN_URL": f"postgresql://latebind@{place}"}

    return addresses


_MINIO = {"MINIO_ROOT_USER": S3_KEY, "MINIO_ROOT_PASSWORD": S3_SECRET, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "CI": "true"}
_WEED_PORTS = (
    *("s3_port", "s3_port_grpc", "master_port", "master_port_grpc"),
    *("volume_port", "volume_port_grpc", "filer_port", "filer_port_grpc"),
)

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "postgres",
            ("sql",),
            install.postgres_18,
            _start_postgres,
            checks.postgres,
            _postgres_addresses("POSTGRES"),
            {},
            signal.SIGINT,  # SIGTERM waits for clients to leave
        ),
        Kind(
            "postgres15",
            ("sql",),
            install.postgres_15,
            _start_postgres,
            checks.postgres,
            _postgres_addresses("POSTGRES15"),
            {},
            signal.SIGINT,
        ),
        Kind(
            "kafka",
            ("broker", "controller"),
            install.kafka_jars,
            _start_kafka,
            checks.kafka,
            lambda ports: {"KAFKA_URL": f"kafka://127.0.0.1:{ports['broker']}"},
            {},
            ready_within_s=180.0,  # one that is killed for being slow on a busy machine never gets there
        ),
        Kind(
            "seaweedfs",
            _WEED_PORTS,
            install.seaweedfs,
            _start_seaweedfs,
            lambda ports: checks.s3(ports["s3_port"], S3_KEY, S3_SECRET),
            lambda ports: {"SEAWEEDFS_URL": _s3_url(ports["s3_port"])},
            {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        ),
        Kind(
            "minio",
            ("s3",),
            install.minio,
            _start_minio,
            lambda ports: checks.s3(ports["s3"], S3_KEY, S3_SECRET),
            lambda ports: {"MINIO_URL": _s3_url(ports["s3"])},
            _MINIO,
        ),
        Kind(
            "clickhouse",
            ("native", "http", "interserver"),
            install.clickhouse,
            _start_clickhouse,
            checks.clickhouse,
            lambda ports: {"CLICKHOUSE_URL": f"clickhouse://default@127.0.0.1:{ports['native']}/latebind"},
            {},
        ),
    )
}
