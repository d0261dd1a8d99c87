"""Pushing versions, from flags and from a latebind.yaml."""

from __future__ import annotations

from pathlib import Path

from tests.models import onnx_add, tflite_add
from tests.sdk.cli.conftest import CommandLine


def test_a_model_with_everything_from_flags(cli: CommandLine) -> None:
    model = cli.model()
    (cli.folder / "names.txt").write_text("a\nb\n")
    (cli.folder / "extra.bin").write_bytes(b"\0\1")
    declared = ("--param", "S:int=13", "--param", "labels:file=" + str(cli.folder / "names.txt"), "--param", "sizes:float[]=1,2.5")
    tensors = ("--input", "x:float32[1,4]", "--output", "y:float32[1,4]")
    more = (
        "--aux",
        f"data/extra.bin={cli.folder / 'extra.bin'}",
        "--require",
        "ram_mb=256",
        "--alias",
        "stable",
        "--notes",
        "first",
        "--rtol",
        "0.1",
    )
    answer = cli.json("push", str(model), "--model", "adder", *declared, *tensors, *more)
    assert (answer["version"], answer["state"], answer["aliases"]) == (1, "ready", ["stable"])
    version = cli.json("model", "show", "adder", "1")
    manifest = version["packages"][0]["manifest"]
    assert manifest["params"]["labels"] == {"type": "file", "value": "names.txt"}
    assert manifest["params"]["sizes"]["value"] == [1, 2.5]
    assert {"names.txt", "data/extra.bin", "model.onnx"} <= {file["path"] for file in manifest["files"]}
    assert manifest["requires"]["ram_mb"] == 256
    assert cli.json("model", "show", "adder")["aliases"] == {"stable": 1}
    shown = cli.run("model", "show", "adder", "1").out
    assert "S: int = 13" in shown
    assert "onnxruntime" in shown


def test_several_variants_in_order_of_preference(cli: CommandLine) -> None:
    cli.model("model.onnx")
    (cli.folder / "model.tflite").write_bytes(tflite_add())
    variants = ("--variant", f"small={cli.folder / 'model.tflite'}", "--variant", f"file={cli.folder / 'model.onnx'}")
    answer = cli.json("push", "--model", "two", *variants)
    assert [one["variant"] for one in answer["packages"]] == ["small", "onnx-fp32"]


def test_a_latebind_yaml(cli: CommandLine) -> None:
    cli.model("models/model.onnx")
    (cli.folder / "labels.txt").write_text("a\n")
    (cli.folder / "latebind.yaml").write_text(
        """
model: from-yaml
description: adds
labels: {team: vision}
notes: from a file
alias: [stable, canary]
variants: [{name: plain, files: [models/model.onnx]}]
files: [{path: labels.txt, as: names.txt}]
params: {labels: {type: file, value: names.txt}, C: {type: int, value: 1}}
inputs: ["x:float32[1,4]"]
outputs: [{name: y, dtype: float32, shape: [1, 4]}]
requires: {ram_mb: 64}
golden: {rtol: 0.5}
"""
    )
    answer = cli.json("push", str(cli.folder))
    assert answer["aliases"] == ["stable", "canary"]
    assert cli.json("model", "show", "from-yaml")["labels"] == {"team": "vision"}
    again = cli.json("push", str(cli.folder / "latebind.yaml"), "--param", "C:int=2", "--notes", "flags win")
    assert again["version"] == 2
    assert cli.json("model", "show", "from-yaml", "2")["declaration"]["params"]["C"]["value"] == 2


def test_other_names_or_types_break_the_parameter_contract(cli: CommandLine) -> None:
    model = str(cli.model())
    cli.run("push", model, "--model", "kept", "--param", "S:int=13", "--param", "t:float=0.5")
    ran = cli.run("push", model, "--model", "kept", "--param", "S:float=13", "--param", "u:int=1", expect=5)
    assert "PARAMETER_CONTRACT_BROKEN" in ran.err
    assert "S: int → float" in ran.err
    assert "t: float → absent" in ran.err
    assert "latebind model show" in ran.err


def test_a_model_that_cannot_be_packaged_ends_with_its_reason(cli: CommandLine) -> None:
    path = cli.folder / "model.onnx"
    path.write_bytes(onnx_add()[:-20])
    error = cli.json("push", str(path), "--model", "broken", expect=7)["error"]
    assert error["code"].startswith("MODEL_")
    assert "latebind jobs watch" in error["next"]
    (version,) = cli.json("model", "versions", "broken")
    assert version["state"] == "failed"
    assert version["problem"]["code"] == error["code"]
    cli.run("jobs", "watch", version["job_id"], expect=7)
    assert error["code"] in cli.run("jobs", "list", "--model", "broken").out
    cli.run("jobs", "cancel", version["job_id"], expect=5)


def test_not_watching_and_watching_later(cli: CommandLine) -> None:
    answer = cli.json("push", str(cli.model()), "--model", "later", "--no-watch")
    assert answer["state"] == "packaging"
    job = cli.json("jobs", "watch", answer["job_id"])
    assert job["state"] == "succeeded"
    assert [one["job_id"] for one in cli.json("jobs", "list", "--state", "succeeded")] == [answer["job_id"]]


def test_mistakes_are_found_before_anything_is_sent(cli: CommandLine, tmp_path: Path) -> None:
    model = str(cli.model())
    wrong = [
        ("push", str(tmp_path / "nope.onnx"), "--model", "x"),
        ("push", model),
        ("push", model, "--model", "x", "--param", "S=13"),
        ("push", model, "--model", "x", "--param", "S:int=many"),
        ("push", model, "--model", "x", "--param", "S:complex=1"),
        ("push", model, "--model", "x", "--input", "x float32"),
        ("push", model, "--model", "x", "--aux", "nope.txt"),
        ("push", model, "--model", "x", "--alias", "stable", "--no-watch"),
        ("push", model, "--model", "x", "--require", "ram"),
        ("push", str(tmp_path / "other.yaml")),
    ]
    for arguments in wrong:
        assert "next" in cli.run(*arguments, expect=2).err, arguments
    (tmp_path / "latebind.yaml").write_text("model: x\nvariants: [model.onnx]\nparam: {}\n")
    assert "param" in cli.run("push", str(tmp_path), expect=2).err
    (tmp_path / "latebind.yaml").write_text("model: [x\n")
    assert "YAML" in cli.run("push", str(tmp_path), expect=2).err
    assert cli.json("model", "list") == []
