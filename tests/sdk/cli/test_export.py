"""`latebind export` and `latebind bundle` against the real server: what they write holds by itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from tests.sdk.cli.conftest import CommandLine

MODELPACK = "application/vnd.cncf.model."


def push(cli: CommandLine, *more: str) -> None:
    (cli.folder / "labels.txt").write_text("cat\ndog\n")
    labels = ["--aux", str(cli.folder / "labels.txt"), "--param", "labels:file=labels.txt", "--param", "S:int=13"]
    cli.run("push", str(cli.model()), "--model", "adder", "--alias", "stable", *labels, *more)


class Layout:
    """An OCI image layout, read by the specification and nothing of ours: every descriptor is followed and checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
        self.index = json.loads((folder / "index.json").read_bytes())
        assert (self.index["schemaVersion"], self.index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
        self.seen: set[str] = set()

    def read(self, descriptor: dict[str, Any]) -> bytes:
        algorithm, _, value = descriptor["digest"].partition(":")
        assert algorithm == "sha256"
        data = (self.folder / "blobs" / "sha256" / value).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (value, descriptor["size"])
        self.seen.add(value)
        return data

    def manifest(self, entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, tuple[str, bytes]]]:
        """Manifest, config, and layers by path."""
        manifest = json.loads(self.read(entry))
        assert (manifest["schemaVersion"], manifest["mediaType"]) == (2, "application/vnd.oci.image.manifest.v1+json")
        assert manifest["artifactType"] == MODELPACK + "manifest.v1+json"
        assert manifest["config"]["mediaType"] == MODELPACK + "config.v1+json"
        config = json.loads(self.read(manifest["config"]))
        assert set(config) == {"descriptor", "modelfs", "config"}  # the schema allows nothing else
        assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
        layers = {one["annotations"]["org.cncf.model.filepath"]: (one["mediaType"], self.read(one)) for one in manifest["layers"]}
        assert len(layers) == len(manifest["layers"])
        assert all(kind.startswith(MODELPACK) and kind.endswith(".v1.raw") for kind, _ in layers.values())
        return manifest, config, layers


def test_an_export_is_a_layout_whose_digests_hold(cli: CommandLine) -> None:
    push(cli, "--description", 'adds: "one" # and no more', "--variant", f"second={cli.model('second.onnx')}")
    to = cli.folder / "layout"
    answer = cli.json("export", "adder:stable", "--to", str(to))
    assert (answer["version"], answer["tags"]) == (1, ["1-onnx-fp32", "1-second"][:: 1 if answer["tags"][0] == "1-onnx-fp32" else -1])
    layout = Layout(to)
    packages = cli.json("model", "show", "adder", "1")["packages"]
    for entry, package in zip(layout.index["manifests"], packages, strict=True):
        assert entry["annotations"]["org.opencontainers.image.ref.name"] == f"1-{package['variant']}"
        manifest, config, layers = layout.manifest(entry)
        # What was signed comes along byte for byte.
        assert (
            hashlib.sha256(layers["manifest.json"][1]).hexdigest() == package["digest"] == manifest["annotations"]["dev.latebind.package"]
        )
        assert json.loads(layers["signature.json"][1]) == package["signature"]
        for file in package["files"]:
            assert hashlib.sha256(layers[file["path"]][1]).hexdigest() == file["sha256"]
        graph = next(file["path"] for file in package["files"] if file["role"] == "graph")
        assert layers[graph][0] == MODELPACK + "weight.v1.raw"
        assert layers["labels.txt"] == (MODELPACK + "weight.config.v1.raw", b"cat\ndog\n")
        assert layers["README.md"][0] == MODELPACK + "doc.v1.raw"
        card = layers["README.md"][1].decode()
        assert card.startswith("# adder version 1") and "`S` (int): `13`" in card
        assert (config["descriptor"]["name"], config["descriptor"]["version"], config["config"]["format"]) == ("adder", "1", "onnx")
        kitfile = yaml.safe_load(layers["Kitfile"][1])
        assert kitfile["manifestVersion"] == "1.0.0"
        assert (kitfile["package"]["name"], kitfile["package"]["description"]) == ("adder", 'adds: "one" # and no more')
        assert (kitfile["model"]["path"], kitfile["model"]["parameters"]) == (graph, {"labels": "labels.txt", "S": 13})
    assert {path.name for path in (to / "blobs" / "sha256").iterdir()} == layout.seen  # nothing is left over
    again = cli.folder / "again"
    cli.run("export", "adder@1", "--to", str(again))
    files = {path.relative_to(to): path.read_bytes() for path in to.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}


def test_what_export_refuses(cli: CommandLine) -> None:
    push(cli)
    assert "not empty" in cli.run("export", "adder", "--to", str(cli.folder), expect=2).err
    to = str(cli.folder / "layout")
    cli.run("export", "adder", "--to", to, "--variant", "tflite-fp32", expect=2)
    cli.run("export", "adder@9", "--to", to, expect=4)
    cli.run("export", "adder@x", "--to", to, expect=2)
    cli.run("export", "adder:canary", "--to", to, expect=2)
    cli.run("export", "unknown", "--to", to, expect=4)
    assert not (cli.folder / "layout").exists()


def test_a_bundle_runs_where_no_server_is(cli: CommandLine) -> None:
    push(cli)
    collection = cli.collection({"rules": [], "default": {"model": "adder", "alias": "stable"}})
    file, trust = cli.folder / "models.bundle", cli.folder / "trust.json"
    answer = cli.json("bundle", collection, "adder:stable", "-o", str(file), "--trust", str(trust), "--kind", "pixel-9")
    assert (answer["names"], len(answer["packages"]), answer["size"]) == ([collection, "adder"], 1, file.stat().st_size)
    assert set(json.loads(trust.read_bytes())) == {"account", "package_keys", "assignment_keys"}
    cli.run("logout")
    cli.patch.setenv("LATEBIND_SERVER", "http://127.0.0.1:1")
    for name in (collection, "adder"):
        ran = cli.json("run", name, "--bundle", str(file), "--trust", str(trust), "--runs", "3")
        assert (ran["package"]["model_id"], ran["params"]["S"]) == ("adder", 13)
    cli.run("run", collection, "--bundle", str(file), expect=2)
    file.write_bytes(file.read_bytes()[:-1])
    assert "BUNDLE_INVALID" in cli.run("run", collection, "--bundle", str(file), "--trust", str(trust), expect=9).err


def test_what_bundle_refuses(cli: CommandLine) -> None:
    push(cli)
    collection = cli.collection({"rules": [], "default": None})
    file = str(cli.folder / "models.bundle")
    assert "NO_MATCH" in cli.run("bundle", collection, "-o", file, expect=8).err
    cli.run("bundle", "unknown", "-o", file, expect=4)
    assert "VERSION_NOT_READY" in cli.run("bundle", "adder:canary", "-o", file, expect=5).err
    assert not Path(file).exists()
