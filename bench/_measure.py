"""How every benchmark measures (PERFORMANCE section 2): interleaved pairs, the median of their ratios, and what ran where.

For libraries: `best_of_blocks` and `interleave`. For servers: `serving` and `load`. A peer is installed by `peer_python` into an
environment of its own under build/bench.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
#: The seed of everything random.
SEED = 20261122


class NotRun(Exception):
    """The peer, or something else that is needed, is not here. Says what is missing."""


class AnswersDiffer(Exception):
    """The two programs do not answer the same, so their speed cannot be compared."""


def pairs_wanted() -> int:
    """Return how many pairs to measure (`--pairs`)."""
    return int(os.environ.get("BENCH_PAIRS", "7"))


# What ran


def commit() -> str:
    """Return the commit of the checkout, with `+` when there are changes."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """Return CPU model, cores, memory, kernel and Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(*distributions: str) -> dict[str, str]:
    """Return the installed version of each distribution of this environment."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def base_document(goal: str, text: str) -> dict[str, Any]:
    """Return what every document begins with."""
    return {"goal": goal, "text": text, "seed": SEED, "commit": commit(), "machine": machine()}


# Pairs


@dataclass(frozen=True, slots=True)
class Pair:
    """One A and one B measured one after the other; rates, or costs, in the same unit."""

    a: float
    b: float

    @property
    def ratio(self) -> float:
        """A ÷ B."""
        return self.a / self.b


def interleave(measure_a: Callable[[], float], measure_b: Callable[[], float], *, pairs: int | None = None) -> list[Pair]:
    """Measure A B A B …; every other pair begins with B, so that drift does not favour one side."""
    found = []
    for number in range(pairs or pairs_wanted()):
        if number % 2:
            b, a = measure_b(), measure_a()
        else:
            a, b = measure_a(), measure_b()
        found.append(Pair(a, b))
    return found


def best_of_blocks(call: Callable[[], object], *, seconds: float, block: int = 1000) -> float:
    """Return seconds per call: the minimum over blocks of `block` equal calls, for about `seconds`."""
    best = float("inf")
    until = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in range(block):
            call()
        end = time.perf_counter()
        best = min(best, (end - start) / block)
        if end >= until:
            return best


def rate(call: Callable[[], int], *, seconds: float) -> float:
    """Return units per second: `call` does some work and returns how many units it was."""
    done = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        done += call()
    return done / elapsed


def summarise(
    pairs: Sequence[Pair],
    *,
    better: Literal["higher", "lower"],
    target: float,
    unit: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    equality: str,
    **more: Any,
) -> dict[str, Any]:
    """Return the document of one comparison of rates (`better="higher"`) or costs (`"lower"`).

    `a` and `b` describe the programs (`name`, `versions` …), `equality` says what was asserted equal before timing. The goal is met
    only if the worst-but-one pair meets it.
    """
    ratios = sorted(pair.ratio for pair in pairs)
    ordered = ratios if better == "higher" else ratios[::-1]
    worst_but_one = ordered[min(1, len(ordered) - 1)]
    met = worst_but_one >= target if better == "higher" else worst_but_one <= target
    return {
        "a": dict(a),
        "b": dict(b),
        "unit": unit,
        "better": better,
        "target": target,
        "pairs": [{"a": pair.a, "b": pair.b, "ratio": pair.ratio} for pair in pairs],
        "median": statistics.median(ratios),
        "minimum": ratios[0],
        "maximum": ratios[-1],
        "worst_but_one": worst_but_one,
        "met": met,
        "equality": equality,
        **more,
    }


def table(document: Mapping[str, Any]) -> str:
    """Return a few lines for people; a document may hold several comparisons under `parts`."""
    lines = [f"{document['goal']}: {document['text']}", f"  {document['status']} {document.get('reason', '')}".rstrip()]
    parts = document.get("parts") or ([document] if "median" in document else [])
    for part in parts:
        if "median" not in part:
            lines.append(f"  {part.get('name', '')}: {part.get('status', '')} {part.get('reason', '')}")
            continue
        sign = "≥" if part["better"] == "higher" else "≤"
        a, b = (statistics.median(pair[side] for pair in part["pairs"]) for side in ("a", "b"))
        lines.append(
            f"  {part.get('name', 'A ÷ B')}: median {part['median']:.4g} ({part['minimum']:.4g} … {part['maximum']:.4g}, worst but one"
            f" {part['worst_but_one']:.4g}), goal {sign} {part['target']:g}: {'met' if part['met'] else 'not met'};"
            f" A {a:.5g}, B {b:.5g} {part['unit']}"
        )
    return "\n".join(lines)


# Peers


def peer_python(peer: str, *requirements: str) -> Path:
    """Return the Python of an environment for one peer under build/bench/<peer>, made with uv at first use. Raises `NotRun`."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / "build" / "tools" / "bin"))
    if uv is None:
        raise NotRun(f"{peer} could not be installed: uv is missing; `make setup` gets it")
    folder = BUILD / peer
    python = folder / "bin" / "python"
    mark = folder / "requirements.json"
    wanted = json.dumps(sorted(requirements))
    if python.exists() and mark.exists() and mark.read_text() == wanted:
        return python
    try:
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotRun(f"{peer} could not be installed: {error}") from error
    mark.write_text(wanted)
    return python


# Servers


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """Return the command bound to one core; unchanged on a machine with a single core or without taskset."""
    cores = sorted(os.sched_getaffinity(0))
    taskset = shutil.which("taskset")
    if taskset is None or len(cores) < 2:
        return list(command)
    return [taskset, "-c", str(cores[core % len(cores)]), *command]


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """Return user + system seconds of a process with all its descendants."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for one in _family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


@dataclass(slots=True)
class Server:
    """A server that runs: its port and process id."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time it has used so far."""
        return cpu_seconds(self.pid)


@contextmanager
def serving(
    command: Sequence[str], port: int, *, core: int = 0, environment: Mapping[str, str] | None = None, ready_s: float = 300.0
) -> Iterator[Server]:
    """Run a server on one core while the block runs; it is ready when `port` accepts connections. Raises `RuntimeError` when it ends."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"server-{port}.log").open("wb") as output:
        process = subprocess.Popen(
            pinned(core, command), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        try:
            _wait_for(port, process, ready_s)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], ready_s: float) -> None:
    until = time.monotonic() + ready_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}; see {BUILD / f'server-{port}.log'}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no server on port {port} after {ready_s} s")


def http_request(method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Return the bytes of one HTTP/1.1 keep-alive request."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    if body or method in {"POST", "PUT"}:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Load:
    """What one load run found. `statuses`: count per status; `bodies`: SHA-256 over the first answer to each request."""

    requests: int
    seconds: float
    cpu_seconds: float
    statuses: dict[str, int]
    bodies: str
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Requests per CPU second of the server: the main figure."""
        return self.requests / self.cpu_seconds if self.cpu_seconds else float("nan")


def load(server: Server, requests: Sequence[bytes], *, seconds: float, connections: int = 16, core: int = 1) -> Load:
    """Send `requests` in turn over keep-alive connections from a client of its own on another core."""
    before = server.cpu_seconds()
    command = pinned(core, [sys.executable, "-m", "bench._load", str(server.port), str(seconds), str(connections)])
    given = json.dumps([request.decode("latin-1") for request in requests])
    ended = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False, timeout=seconds + 60)
    used = server.cpu_seconds() - before
    if ended.returncode != 0:
        raise RuntimeError(f"the load generator failed: {ended.stderr[-2000:]}")
    return Load(cpu_seconds=used, **json.loads(ended.stdout))
