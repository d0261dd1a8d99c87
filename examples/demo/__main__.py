"""The story of `make demo` and `make demo-cluster`. `python -m examples.demo [--cluster] [--keep]`; figures end up in build/demo.json."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import latebind
from examples.demo import check, models, rules
from examples.demo.devices import APP, Access, RealDevice
from examples.demo.server import Server, ServerFailed, start, start_cluster, stopping
from examples.demo.shell import CommandFailed, Shell
from examples.real_models import ModelsUnavailable
from latebind.cli._kinds import read_kinds

ROOT = Path.cwd()
BUILD = ROOT / "build"
SERVERS = BUILD / "servers" / "servers.env"
SIMULATED = 210
REAL_KINDS = (
    *("pixel-9", "pixel-6a", "galaxy-s25", "galaxy-s24", "galaxy-a15", "fairphone-4", "raspberry-pi-5", "jetson-orin"),
    *("pixel-9", "galaxy-s24"),
)
SAMPLES = ("README.md", "Makefile", "pyproject.toml", "examples/demo/__main__.py", "proto/latebind/v1/events.proto", "LICENSE")
#: How long anything may take before it counts as failed; a busy machine needs more than a quiet one.
READY_S = 180.0
MOVE_S = 120.0
ACCOUNT = "acme"


class DemoFailed(Exception):
    """What was shown is not as it should be."""


def main() -> int:
    """Tell the story; 0 when everything was as it should be."""
    parser = argparse.ArgumentParser("make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the server up at the end")
    parser.add_argument("--cluster", action="store_true", help="two processes of each part on the servers of `make servers`")
    given = parser.parse_args()
    began = time.monotonic()
    folder = BUILD / ("demo-cluster" if given.cluster else "demo")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shell = Shell(folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logs = f"{folder.relative_to(ROOT)}"
    try:
        with stopping(begin(shell, folder, cluster=given.cluster), keep=given.keep) as server:
            logs = server.logs
            shell.remark(f"serves {server.url} (in {time.monotonic() - began:.1f} s)")
            figures = Story(shell, server, folder).tell()
        figures["wall_s"] = round(time.monotonic() - began, 1)
        figures_file = folder.with_suffix(".json")
        figures_file.write_text(json.dumps(figures, indent=2) + "\n")
        farewell(shell, server, figures, folder, keep=given.keep)
    except (CommandFailed, DemoFailed, ServerFailed, ModelsUnavailable) as error:
        shell.remark(f"\nThe demo failed: {error}\nThe server's logs: {logs}", "bold red")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def begin(shell: Shell, folder: Path, *, cluster: bool) -> Server:
    """Part 0: something to talk to."""
    if cluster:
        shell.headline(0, "Two processes of each part, on PostgreSQL, Kafka, an S3 store and ClickHouse")
        shell.console.print("\n[bold green]$[/] [bold]python -m deploy.cluster up[/]")
        return start_cluster(folder, SERVERS, lambda name, text: shell.remark(f"  {name:<12} {text}"))
    shell.headline(0, "A server in one process, on a new data folder")
    shell.console.print("\n[bold green]$[/] [bold]latebindd --port 0 --data-dir build/demo/data[/] &")
    return start(folder)


class Story:
    """What a user does with a new server, part by part."""

    def __init__(self, shell: Shell, server: Server, folder: Path) -> None:
        self.shell = shell
        self.server = server
        self.folder = folder
        self.client = latebind.Client(server.url, None)
        self.files = ""
        self.notes = ""
        self.real: list[RealDevice] = []
        self.fleet: Popen[bytes] | None = None
        self.figures: dict[str, Any] = {}

    def tell(self) -> dict[str, Any]:
        """All parts in order; the figures."""
        try:
            self.packages()
            self.collections()
            self.devices()
            self.who_got_what()
            self.edit_rules()
            self.ending()
        finally:
            self._stop_real_devices()
            if self.fleet is not None and self.fleet.poll() is None:
                self.fleet.kill()
        return self.figures

    def packages(self) -> None:
        """Part 1."""
        shell = self.shell
        shell.headline(1, "Two models become packages: magika in two versions, basic-pitch with two variants")
        folders = models.write_versions(self.folder / "models")
        operator = self.server.operator_key
        made = shell.ask("--server", self.server.url, "--api-key", operator, "account", "create", ACCOUNT, hide=operator)
        key = made["api_key"]["key"]
        shell.remark(f"the first admin key of {ACCOUNT}, shown this once: {key[:16]}…")
        shell.ask("login", self.server.url, "--api-key", key, hide=key)
        self.client = latebind.Client(self.server.url, key)
        shell.show("push", str(folders["magika-1"]), "--alias", "stable")
        shell.show("push", str(folders["magika-2"]))
        shell.show("push", str(folders["basic-pitch-1"]), "--alias", "stable")
        shell.show("model", "compare", "magika", "1", "2")
        self.figures["packages"] = len(self._package_names())

    def collections(self) -> None:
        """Part 2."""
        shell = self.shell
        shell.headline(2, "Collections: what apps name. Rules by SoC and API level say who gets which package")
        for name, document in (("files", rules.FILES), ("notes", rules.NOTES)):
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps(document, indent=1) + "\n")
            made = shell.ask("collection", "create", name, "--rules", str(path), "--publish")
            setattr(self, name, made["id"])
            shell.remark(f"{name} is {made['id']}, revision {made['revision']}")
        shell.show("collection", "lint", self.notes)
        shell.show("collection", "explain", self.files, "--kind", "galaxy-s24")

    def devices(self) -> None:
        """Part 3."""
        shell = self.shell
        kinds = {kind.name: kind for kind in read_kinds()}
        shell.headline(3, f"A fleet: {SIMULATED} simulated devices of {len(kinds)} kinds, and {len(REAL_KINDS)} that truly run the models")
        collections = (self.files, self.notes)
        self.fleet = shell.begin(
            "simulate-fleet", *collections, "--devices", str(SIMULATED), "--duration", "10m", output=self.folder / "fleet.json"
        )
        enrolment = shell.ask("enrolment-key", "create", "--quota", str(len(REAL_KINDS)), "--name", "real devices")
        access = Access(self.server.url, ACCOUNT, enrolment["key"], self.files, self.notes)
        samples = [ROOT / name for name in SAMPLES if (ROOT / name).is_file()]
        seen: Counter[str] = Counter()
        for name in REAL_KINDS:
            self.real.append(RealDevice(kinds[name], seen[name], access, self.folder / "devices", samples))
            seen[name] += 1
        for device in self.real:
            device.start()
        for device in self.real:
            if not device.wait_until_ready(READY_S):
                raise DemoFailed(f"{device.name} did not get its models: {device.refused or device.failed}")
        rows = [f"  {device.name:<18} {device.said[0]:<34} {device.said[-1] if len(device.said) > 1 else ''}" for device in self.real]
        shell.remark("\n".join(("\nthe real devices downloaded, verified, tested and ran their models:", *rows)))
        self._until_all_have_joined()

    def _until_all_have_joined(self) -> None:
        ends = time.monotonic() + READY_S
        wanted = SIMULATED + len(self.real)
        while (joined := sum(1 for _ in self.client.devices.list())) < wanted:
            if time.monotonic() > ends or (self.fleet is not None and self.fleet.poll() is not None):
                raise DemoFailed(f"only {joined} of {wanted} devices came: see {self.folder}/fleet.log")
            time.sleep(0.5)
        self.shell.remark(f"\nall {joined} devices have asked")

    def who_got_what(self) -> None:
        """Part 4."""
        shell = self.shell
        shell.headline(4, "Who got what, and why")
        devices = shell.ask("devices", "list", "--limit", "1000")
        self._show_kinds(devices)
        for kind, collection in (("redmi-9a", self.files), ("mate-20", self.notes)):
            install = next(one["install_id"] for one in devices if one["context"]["attributes"]["kind"] == kind)
            shell.show("collection", "explain", collection, "--install", install)
        self._settled()
        shell.show("stats", "active-installs", "--since", "1d", "--by", "device_model")
        shell.show("stats", "latency", "--phase", "steady", "--by", "model", "--by", "device_model")

    def _show_kinds(self, devices: Sequence[dict[str, Any]]) -> None:
        names = self._package_names()
        counted: dict[str, Counter[str]] = {}
        for device in devices:
            got = counted.setdefault(device["context"]["attributes"]["kind"], Counter())
            for state in device["collections"]:
                got[
                    names.get(state["wanted"], "") or f"{state['reason']} ({'files' if state['collection'] == self.files else 'notes'})"
                ] += 1
        for kind, got in sorted(counted.items()):
            self.shell.remark(f"  {kind:<16} " + ", ".join(f"{what} × {count}" for what, count in sorted(got.items())))

    def _package_names(self) -> dict[str | None, str]:
        names: dict[str | None, str] = {}
        for model in ("magika", "basic-pitch"):
            for version in self.client.models.versions(model):
                names |= {package["digest"]: f"{model} v{version['version']} {package['variant']}" for package in version["packages"]}
        return names

    def edit_rules(self) -> None:
        """Part 5."""
        shell = self.shell
        shell.headline(5, "The rules change, and running devices move, without being restarted")
        before = self._running()
        predicted = 0
        for name, document in (("files", rules.FILES_AFTER), ("notes", rules.NOTES_AFTER)):
            collection = getattr(self, name)
            path = self.folder / f"{name}-after.json"
            path.write_text(json.dumps(document, indent=1) + "\n")
            shell.show("collection", "edit", collection, "--rules", str(path))
            shell.show("collection", "simulate", collection)
            predicted += self.client.collections.simulate(collection)["moved"]
        for name in ("files", "notes"):
            shell.show("collection", "publish", getattr(self, name), "--note", "wider")
        ends = time.monotonic() + MOVE_S
        began = time.monotonic()
        while True:
            now = self._running()
            moved = [key for key, package in now.items() if before.get(key) != package]
            if len(moved) >= predicted:
                break
            if time.monotonic() > ends:
                raise DemoFailed(f"{predicted} moves were predicted, {len(moved)} happened within {MOVE_S:.0f} s")
            time.sleep(1.0)
        names = self._package_names()
        shell.remark(f"\n{len(moved)} moves as predicted, within {time.monotonic() - began:.0f} s of the publish:")
        for (old, new), count in Counter((before.get(key), now[key]) for key in moved).items():
            shell.remark(f"  {names[old]} → {names[new]}: {count} devices")
        shell.remark("of the real devices, while they ran:")
        for device in self.real:
            for old, new in device.switched:
                shell.remark(f"  {device.name:<18} {old} → {new}, {device.inferences} inferences, {len(device.failed)} failed")

    def _running(self) -> dict[tuple[str, str], str]:
        """What runs, by install and collection, as devices reported it."""
        return {
            (device["install_id"], state["collection"]): state["running"]
            for device in self.client.devices.list()
            for state in device["collections"]
            if state["running"]
        }

    def ending(self) -> None:
        """Part 6."""
        shell = self.shell
        shell.headline(6, "The end: figures of the server against what the devices counted themselves")
        time.sleep(3.0)
        assert self.fleet is not None
        self.fleet.send_signal(signal.SIGINT)
        self._stop_real_devices()
        if self.fleet.wait(60.0) != 0:
            raise DemoFailed(f"the fleet ended with an error: see {self.folder}/fleet.log")
        fleet = json.loads((self.folder / "fleet.json").read_text())
        total = fleet["inferences"] + sum(device.inferences for device in self.real)
        self._settled(total)
        self._compare(fleet)
        failed = [failure for device in self.real for failure in device.failed]
        moved_real = sum(bool(device.switched) for device in self.real)
        refusals = Counter(fleet["refusals"]) + Counter(code for device in self.real for code in device.refused.values())
        self.figures |= {
            "devices": fleet["devices"] + len(self.real),
            "device_kinds": len({kind["kind"] for kind in fleet["kinds"]} | {device.kind.name for device in self.real}),
            "real_devices": len(self.real),
            "refusals": dict(refusals),
            "inferences": total,
            "failed_inferences": fleet["failed_inferences"] + len(failed),
            "moved_devices": fleet["moved_devices"] + moved_real,
            "moved_real_devices": moved_real,
            "failures": fleet["failures"],
            "commands": shell.commands,
        }
        if failed or fleet["failed_inferences"] or not moved_real or not fleet["moved_devices"]:
            raise DemoFailed(f"failed inferences: {failed[:3]}; moved: {moved_real} real, {fleet['moved_devices']} simulated")

    def _stop_real_devices(self) -> None:
        for device in self.real:
            device.ask_to_stop()
        for device in self.real:
            device.stop()

    def _settled(self, total: int = 0) -> None:
        """Wait until the server has counted everything that it has taken."""
        ends = time.monotonic() + 30.0
        while True:
            answer = self.client.analytics.query("inferences")
            count = sum(item["inferences"] for item in answer["items"])
            if (not answer["pending_batches"] and count >= max(total, 1)) or time.monotonic() > ends:
                return
            time.sleep(0.3)

    def _compare(self, fleet: dict[str, Any]) -> None:
        shell = self.shell
        by_package = shell.ask("stats", "inferences", "--by", "app_id", "--by", "model", "--by", "version", "--by", "variant")
        wrong = check.differences(check.counted_inferences(fleet, self.real), check.server_inferences(by_package["items"]))
        names = {kind.name: str(kind.context["device"]["model"]) for kind in read_kinds()}
        steady = ("stats", "latency", "--phase", "steady", "--by", "model", "--by", "device_model")
        served = {}
        for real, apps in ((True, [APP["id"]]), (False, ["com.example.camera", "com.example.gateway"])):
            where = [part for app in apps for part in ("--where", f"app_id={app}")]
            served |= check.server_latency(shell.ask(*steady, *where)["items"], real=real)
        wrong += check.differences(check.counted_latency(fleet, self.real, names), served)
        installs = shell.ask("stats", "active-installs", "--since", "1d", "--interval", "month")["items"]
        active = max(item["active_installs"] for item in installs)
        if active != fleet["devices"] + len(self.real):
            wrong.append(f"active installs: {fleet['devices'] + len(self.real)} devices, the server says {active}")
        if wrong:
            raise DemoFailed("the server's figures differ from the devices':\n  " + "\n  ".join(wrong[:20]))
        shell.remark(
            f"\n✓ {len(served)} percentiles, {len(by_package['items'])} counts and the active installs agree with the devices' own", "green"
        )
        self.figures["active_installs"] = active
        for name in ("p50_ms", "p95_ms"):
            table: dict[str, dict[str, float]] = {}
            for item in self.client.analytics.query("latency", group_by=("model", "device_model"), phase="steady")["items"]:
                table.setdefault(item["model"], {})[item["device_model"]] = item[name]
            self.figures[name] = table
        self.figures["figures_checked"] = len(served) + len(by_package["items"]) + 1


def farewell(shell: Shell, server: Server, figures: dict[str, Any], folder: Path, *, keep: bool) -> None:
    """The summary, and how to go on by hand."""
    refusals = ", ".join(f"{code} × {count}" for code, count in figures["refusals"].items())
    build = folder.relative_to(ROOT)
    shell.remark(
        f"""
{figures["devices"]} devices of {figures["device_kinds"]} kinds, {figures["real_devices"]} of them real
{figures["packages"]} packages, signed; refused: {refusals}
{figures["inferences"]} inferences, {figures["failed_inferences"]} failed
{figures["moved_devices"]} devices moved, {figures["moved_real_devices"]} of them real
{figures["active_installs"]} active installs; percentiles by model and kind are in {build}.json
{figures["commands"]} commands in {figures["wall_s"]} s
""",
        "bold",
    )
    lines = ["Go on by hand:", ""]
    if keep:
        lines += [f"  the server still runs at {server.url} (API: {server.url}/docs); stop it with: {server.end}"]
    else:
        lines += [f"  {server.again}"]
    lines += [
        f"  export LATEBIND_CONFIG={build}/config.toml PATH=$PWD/.venv/bin:$PATH",
        "  latebind collection list",
        "  latebind run COLLECTION                           # this machine as a device",
        "  latebind collection edit COLLECTION               # the rules in your $EDITOR, then: publish",
        "  latebind simulate-fleet COLLECTION -n 100 --real 4",
        "  latebind stats latency --by model --by device_model",
    ]
    shell.remark("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
