"""A cluster is backed up under load, destroyed, and restored elsewhere by the commands of docs/backup.md; devices go on."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from deploy.cluster import Cluster
from deploy.cluster.stores import Stores
from deploy.servers import install
from latebind.device.agent import DeviceAgent
from tests import real_servers
from tests.cluster.conftest import ClusterApi
from tests.e2e.world import World, eventually
from tests.models import onnx_add
from tests.server import ROOT

pytestmark = pytest.mark.cluster
INPUT = {"x": [[1.0, 2.0, 3.0, 4.0]]}
SCHEMAS = ("registry", "packager", "deployer", "telemetry")
#: Who holds a lease changes at every start; everything else must be as it was.
PASSING = ("leases",)


def block(heading: str) -> str:
    """The commands below a heading of docs/backup.md."""
    text = (ROOT / "docs/backup.md").read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("```sh\n")[2].partition("```")[0]


@dataclass
class Operator:
    """Runs the documented commands against some stores."""

    cluster: Cluster
    folder: Path
    programs: Path = field(default_factory=lambda: install.postgres_18(print))

    def run(self, heading: str) -> str:
        olap = urlsplit(self.cluster.stores.olap)
        environment = {
            **os.environ,
            **self.cluster.environment,
            "PATH": f"{ROOT / '.venv/bin'}:{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "BACKUP": str(self.folder),
            "CLICKHOUSE": f"--host {olap.hostname} --port {olap.port} --user default --database {olap.path.strip('/')}",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block(heading)],
            cwd=self.cluster.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def rows(self, dump: Path) -> dict[str, str]:
        """A digest of every table's rows in a dump, whatever their order."""
        text = subprocess.run(
            [self.programs / "pg_restore", "--data-only", "--file=-", str(dump)], capture_output=True, text=True, check=True
        ).stdout
        found = {}
        for table, rows in re.findall(r"^COPY (\S+) .*? FROM stdin;\n(.*?)^\\\.$", text, re.MULTILINE | re.DOTALL):
            if not table.endswith(PASSING):
                found[table] = hashlib.sha256("\n".join(sorted(rows.splitlines())).encode()).hexdigest()
        return found


async def drop_schemas(database: str) -> None:
    """Destroy the databases of a cluster."""
    prefix = re.search(r"schema_prefix=(\w+)", database)
    assert prefix
    connection = await asyncpg.connect(real_servers.address("POSTGRES_ADMIN_URL"))
    try:
        for schema in SCHEMAS:
            await connection.execute(f'DROP SCHEMA "{prefix[1]}{schema}" CASCADE')
    finally:
        await connection.close()


@contextmanager
def busy(work: Callable[[int], object]) -> Iterator[list[int]]:
    """Do work again and again beside the block; yields the numbers whose work was acknowledged."""
    stop, done, broken = threading.Event(), list[int](), list[BaseException]()

    def loop() -> None:
        try:
            while not stop.is_set():
                work(len(done))
                done.append(len(done))
                time.sleep(0.05)
        except BaseException as error:
            broken.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
    assert not broken, broken


async def test_a_destroyed_cluster_is_restored_and_devices_go_on(own_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    one_each = dict.fromkeys(("registry", "packager", "deployer", "telemetry", "writer", "gateway"), 1)
    cluster = own_cluster(replicas=one_each).start()
    world = World(ClusterApi(cluster))
    world.push("adder", {"onnx-fp32": ("model.onnx", onnx_add())})
    collection = world.collection({"rules": [], "default": {"model": "adder", "version": 1}})
    key = world.enrolment_key()
    device = world.device(tmp_path / "device", key)
    handle = device.open(collection)

    def infer(_number: int) -> None:
        handle.run(INPUT)
        device.flush()
        assert device.send().error is None

    def write(number: int) -> None:
        world.ok(world.client.post("/v1/models", json={"model_id": f"model-{number}"}))

    infer(0)
    operator = Operator(cluster, tmp_path / "backup")
    with busy(infer) as inferred, busy(write) as written:
        eventually(lambda: len(inferred) > 20 and len(written) > 20)
        world.commit("adder", {"onnx-fp32": ("model.onnx", onnx_add(constant=2.0))})  # its package is under way
        before = len(inferred) + 1, len(written)
        said = operator.run("Back up")
        after = len(inferred) + 1, len(written)
        eventually(lambda: len(inferred) + 1 > after[0] and len(written) > after[1])
    assert before < after, "nothing went on during the backup"
    print(said)

    # What the restored server cannot know: a revision that the device has seen.
    eventually(lambda: world.ok(world.client.get("/v1/models/adder/versions/2"))["state"] == "ready", within_s=60)
    newest = world.publish(collection, {"rules": [], "default": {"model": "adder", "version": 2}})
    eventually(lambda: polled_version(device, collection) == 2)
    sent = len(inferred) + 1
    world.close()

    cluster.kill()
    await drop_schemas(cluster.stores.database)
    shutil.rmtree(cluster.folder / "secrets")
    for process in cluster.processes():
        shutil.rmtree(process.data_dir, ignore_errors=True)
    fresh = Stores(cluster.stores.database, real_servers.kafka(), real_servers.s3("seaweedfs"), real_servers.clickhouse())
    cluster = own_cluster(replicas=one_each, stores=fresh)
    restored = replace(operator, cluster=cluster)
    print(restored.run("Restore"))

    again = Operator(cluster, tmp_path / "again")
    again.run("Back up")
    assert again.rows(tmp_path / "again/databases/postgres.dump") == operator.rows(tmp_path / "backup/databases/postgres.dump")
    assert digests(tmp_path / "again/blobs") == digests(tmp_path / "backup/blobs")

    cluster.start()
    with ClusterApi(cluster).client(world.key) as client:
        world.client = client
        models = {one["model_id"] for one in pages(world, "/v1/models")}
        assert {f"model-{number}" for number in range(before[1])} <= models
        eventually(lambda: world.ok(client.get("/v1/models/adder/versions/2"))["state"] == "ready", within_s=60)
        eventually(lambda: before[0] <= world.inferences() <= sent)
        eventually(lambda: world.ok(client.get("/v1/analytics/inferences"))["pending_batches"] == 0)
        counted = world.inferences()
        handle.run(INPUT)
        device.flush()
        assert device.send().error is None
        eventually(lambda: world.inferences() == counted + 1)
        # The device has seen a later revision; it follows the restored server all the same.
        assert world.publish(collection, {"rules": [], "default": {"model": "adder", "version": 1}}) <= newest
        eventually(lambda: polled_version(device, collection) == 1)
        assert world.device(tmp_path / "other", key).open(collection).run(INPUT)
    device.close(send=False)


def polled_version(device: DeviceAgent, collection: str) -> int | None:
    package = device.poll_once(collection).package
    return package.version if package else None


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def pages(world: World, path: str) -> Iterator[dict[str, str]]:
    token = None
    while True:
        answer = world.ok(world.client.get(path, params={"page_size": 200, **({"page_token": token} if token else {})}))
        yield from answer["items"]
        token = answer["next_page_token"]
        if not token:
            return
