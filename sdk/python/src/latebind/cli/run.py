"""`latebind resolve` and `latebind run`: what a collection gives to a device, and what its model does on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

import latebind
from latebind._files import read_json
from latebind.cli._errors import CommandError, ExitCode, NotLoggedIn
from latebind.cli._explain import answer_text, context_of
from latebind.cli._output import Output, shape_text
from latebind.cli._state import AsJson, State, begin, state_of

Collection = Annotated[str, typer.Argument(metavar="COLLECTION", help="Collection id.")]
EnrolmentKey = Annotated[
    str | None,
    typer.Option(envvar="LATEBIND_ENROLMENT_KEY", help="Key to enrol with; without it an admin key makes one that lives an hour."),
]
Account = Annotated[str | None, typer.Option(help="Account of the collection; without it that of the API key.")]


def resolve(
    ctx: typer.Context,
    *,
    collection: Collection,
    install: Annotated[str | None, typer.Option(help="Install id of a device that has asked.")] = None,
    kind: Annotated[str | None, typer.Option(help="A built-in kind of device, such as pixel-9.")] = None,
    context: Annotated[Path | None, typer.Option(help="A device context as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which package a device would get now: a device, a kind, a context, or this machine. Fails (8) when it is none."""
    client, out = begin(ctx, as_json)
    asked = None if install is not None else context_of(kind, context)
    with client:
        found = client.collections.explain(collection, context=asked, install_id=install)
    answer = {"collection": collection, "revision": found["revision"], "install_id": found["install_id"], **found["answer"]}

    def show() -> None:
        out.say(str(answer_text(found["answer"])), "bold green" if answer["package"] else "bold red")
        for refused in answer["packages"]:
            name = f"{refused['model_id']} v{refused['version']} {refused['variant'] or ''}".rstrip()
            out.say(f"  {name}: {refused['condition']} needs {refused['needed']}, the device has {refused['reported']}")
        out.note(f"why: latebind collection explain {collection}")

    out.emit(answer, show)
    if answer["package"] is None:
        raise typer.Exit(ExitCode.NO_PACKAGE)


def run(
    ctx: typer.Context,
    *,
    collection: Collection,
    input_file: Annotated[Path | None, typer.Option("--input", help=".npz (by name), .npy, or raw bytes; without it, generated.")] = None,
    runs: Annotated[int, typer.Option("--runs", "-n", min=1, help="How often to run.")] = 20,
    output_file: Annotated[Path | None, typer.Option("--output", help="Write the outputs of the last run to this .npz.")] = None,
    context: Annotated[Path | None, typer.Option(help="What this device says of itself beyond what is found out, as JSON.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Keep identity and packages here; without it they are forgotten.")] = None,
    enrolment_key: EnrolmentKey = None,
    account: Account = None,
    bundle: Annotated[Path | None, typer.Option(help="Run from this bundle, without any server; needs --trust.")] = None,
    trust: Annotated[Path | None, typer.Option(help="The account's public keys, as latebind bundle --trust wrote them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a collection's model on this machine, as an app would, and print how long it took."""
    state = state_of(ctx, as_json)
    if bundle is not None:
        _run_bundle(state.output, bundle, trust, collection, runs=runs, input_file=input_file, output_file=output_file, cache_dir=cache_dir)
        return
    server, account, enrolment_key = device_access(state, account=account, enrolment_key=enrolment_key, quota=1, known=cache_dir)
    facts = None if context is None else {name: value for name, value in context_of(None, context).items() if name != "install_id"}
    with (
        _cache(cache_dir) as folder,
        latebind.Manager(server=server, enrolment_key=enrolment_key, cache_dir=folder, context=facts, background=False) as manager,
    ):
        config = latebind.ModelConfig(account, collection)
        _run(state.output, manager, config, runs=runs, input_file=input_file, output_file=output_file)


def _run_bundle(
    out: Output,
    bundle: Path,
    trust: Path | None,
    collection: str,
    *,
    runs: int,
    input_file: Path | None,
    output_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """As a device without network: the keys say whose bundle it must be."""
    keys = None if trust is None else read_json(trust)
    if not isinstance(keys, dict) or not isinstance(keys.get("account"), str):
        raise CommandError(
            "a bundle is checked with keys that do not come from it", hint="--trust FILE, as latebind bundle --trust wrote it"
        )
    with _cache(cache_dir) as folder, latebind.Manager(bundle=bundle, trust=keys, cache_dir=folder, background=False) as manager:
        config = latebind.ModelConfig(keys["account"], collection)
        _run(out, manager, config, runs=runs, input_file=input_file, output_file=output_file)


def _run(
    out: Output, manager: latebind.Manager, config: latebind.ModelConfig, *, runs: int, input_file: Path | None, output_file: Path | None
) -> None:
    from latebind.cli._generate import generate_inputs, read_inputs, summary_of, write_outputs  # noqa: PLC0415 - numpy takes a third of a second

    began = time.perf_counter()
    with out.steps(f"opening {config.collection}"):
        handle = manager.open_blocking(config)
    opened_s = time.perf_counter() - began
    info = handle.info
    inputs = generate_inputs(info.inputs) if input_file is None else read_inputs(input_file, info.inputs)
    with out.steps(f"running {info.model_id} v{info.version}") as step:
        latencies = []
        for number in range(runs):
            result = handle.run(inputs)
            latencies.append(result.latency_us / 1000)
            step(f"running {info.model_id} v{info.version}", (number + 1) / runs)
    if output_file is not None:
        write_outputs(output_file, result)
    steady = sorted(latencies[1:])
    timings = {
        "open_ms": round(1000 * opened_s, 3),
        "first_ms": latencies[0],
        "steady_p50_ms": steady[len(steady) // 2] if steady else None,
        "steady_p95_ms": steady[min(len(steady) - 1, int(0.95 * len(steady)))] if steady else None,
        "runs": runs,
    }
    answer = {
        "collection": config.collection,
        "package": {"digest": info.package, "model_id": info.model_id, "version": info.version, "variant": info.variant},
        "engine": {"name": info.engine, "version": info.engine_version},
        "params": dict(info.params),
        "timings": timings,
        "outputs": summary_of(result),
    }

    def show() -> None:
        tensors = [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape or ())} for one in (*info.inputs, *info.outputs)]
        split = len(info.inputs)
        out.facts(
            {
                "model": f"{info.model_id} v{info.version} {info.variant}",
                "engine": f"{info.engine} {info.engine_version}",
                "inputs": "; ".join(map(shape_text, tensors[:split])),
                "outputs": "; ".join(map(shape_text, tensors[split:])),
                "parameters": ", ".join(f"{name}={_brief(value)}" for name, value in info.params.items()) or None,
                "opened in": f"{timings['open_ms']:.0f} ms (ask, download, verify, load, golden test)",
                "first run": f"{latencies[0]:.3f} ms",
                "steady runs": f"p50 {timings['steady_p50_ms']:.3f} ms, p95 {timings['steady_p95_ms']:.3f} ms over {len(steady)}"
                if steady
                else None,
            }
        )
        out.table(["output", "dtype", "shape", "min", "mean", "max", "arg max"], [list(one.values()) for one in answer["outputs"]])  # type: ignore[attr-defined]

    out.emit(answer, show)


def device_access(
    state: State, *, account: str | None, enrolment_key: str | None, quota: int, known: Path | None = None
) -> tuple[str, str, str | None]:
    """Server, account and enrolment key for devices; an admin's API key makes a key that lives an hour when none is given.

    `known` is a cache folder that may hold an identity already. Raises NotLoggedIn, CommandError.
    """
    profile = state.profile()
    if not profile.server:
        raise NotLoggedIn("no server is known")
    account = account or profile.account
    if account is None and profile.api_key:
        with state.client() as client:
            account = client.whoami().get("account")
    if account is None:
        raise CommandError("no account is known", hint="pass --account, or log in: latebind login SERVER")
    enrolled = known is not None and (known / account / "identity.json").exists()
    if enrolment_key is None and not enrolled:
        until = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds").replace("+00:00", "Z")
        with state.client() as client:
            enrolment_key = client.enrolment_keys.create(quota=quota, name="latebind command line", expires_at=until)["key"]
    return profile.server, account, enrolment_key


@contextmanager
def _cache(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="latebind-run-") as temporary:
        yield Path(temporary)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
