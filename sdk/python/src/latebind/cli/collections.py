"""`latebind collection`: what apps name, and the rules behind it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

import latebind
from latebind.cli._errors import CheckFailed, CommandError
from latebind.cli._explain import context_of, show_explanation
from latebind.cli._output import Output, size_text
from latebind.cli._state import AsJson, Limit, begin

app = typer.Typer()

Collection = Annotated[str, typer.Argument(metavar="COLLECTION", help="Collection id.")]
Rules = Annotated[str | None, typer.Option("--rules", help="A JSON file, or - for stdin.")]
Note = Annotated[str, typer.Option(help="Kept with the revision.")]


@app.command("create")
def create(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="Name for people; the id is generated.")],
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    rules: Rules = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish the rules at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a collection; its id goes into the app."""
    client, out = begin(ctx, as_json)
    document = None if rules is None else _read(rules)
    if publish and document is None:
        raise CommandError("there is nothing to publish yet", hint="pass --rules FILE too")
    with client:
        made = client.collections.create(name, description=description)
        if document is not None:
            client.collections.put_draft(made["id"], document)
            if publish:
                made["revision"] = client.collections.publish(made["id"])["revision"]["revision"]

    def show() -> None:
        out.done(f"collection {name}; its id goes into the app:")
        out.say(made["id"], "bold")
        if not publish:
            out.note(f"next: latebind collection edit {made['id']}, then latebind collection publish {made['id']}")

    out.emit(made, show)


@app.command("list")
def list_collections(ctx: typer.Context, limit: Limit = 200, as_json: AsJson = False) -> None:
    """List collections."""
    client, out = begin(ctx, as_json)
    columns = {"collection": "id", "name": "name", "revision": "revision", "updated": "updated_at", "description": "description"}
    with client:
        out.items(islice(client.collections.list(), limit), columns, "no collections yet: latebind collection create NAME")


@app.command("show")
def show(
    ctx: typer.Context,
    *,
    collection: Collection,
    revision: Annotated[int | None, typer.Option(min=1, help="A revision; without it the draft.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a collection and its rules: the draft's, or a revision's."""
    client, out = begin(ctx, as_json)
    with client:
        found = client.collections.get(collection)
        document = (
            client.collections.draft(collection)[0] if revision is None else client.collections.revision(collection, revision)["document"]
        )

    def show_it() -> None:
        what = "draft" if revision is None else f"revision {revision}"
        out.facts({"collection": found["id"], "name": found["name"], "published revision": found["revision"], "shown": what})
        out.say(json.dumps(document, indent=2, ensure_ascii=False))

    out.emit({**found, "rules": document}, show_it)


@app.command("edit")
def edit(ctx: typer.Context, collection: Collection, rules: Rules = None, as_json: AsJson = False) -> None:
    """Change the draft: from --rules, or in $EDITOR. Nothing changes for devices before it is published."""
    client, out = begin(ctx, as_json)
    with client:
        draft, etag = client.collections.draft(collection)
        document = _edited(draft, collection) if rules is None else _read(rules)
        stored = draft if document == draft else client.collections.put_draft(collection, document, if_match=etag)
        findings = client.collections.lint(collection)

    def show_it() -> None:
        if document == draft:
            out.done("the draft stays as it is")
        else:
            out.done(f"the draft of {collection} is changed; next: latebind collection simulate {collection}, then publish")
        _show_findings(out, findings)

    out.emit({"collection": collection, "changed": document != draft, "rules": stored, "findings": findings}, show_it)


@app.command("lint")
def lint(
    ctx: typer.Context,
    *,
    collection: Collection,
    rules: Rules = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail (10) when there is a warning.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is odd about the draft: rules that nobody reaches, that hide behind another, that overlap."""
    client, out = begin(ctx, as_json)
    with client:
        findings = client.collections.lint(collection, None if rules is None else _read(rules))
    out.emit(
        {"collection": collection, "findings": findings}, lambda: _show_findings(out, findings, empty="nothing is odd about the rules")
    )
    if strict and any(finding["severity"] == "warning" for finding in findings):
        raise CheckFailed("the rules have warnings", hint=f"latebind collection edit {collection}")


@app.command("simulate")
def simulate(ctx: typer.Context, collection: Collection, rules: Rules = None, as_json: AsJson = False) -> None:
    """Hold the draft against every device seen so far: who moves, how many get nothing, bytes to download."""
    client, out = begin(ctx, as_json)
    with client:
        found = client.collections.simulate(collection, None if rules is None else _read(rules))

    def show_it() -> None:
        out.facts(
            {
                "devices": found["devices"],
                "stay": found["unchanged"],
                "move": found["moved"],
                "get nothing": _counts(found["refused"]),
                "got nothing before": _counts(found["refused_before"]),
                "to download": size_text(found["bytes_to_download"]),
            }
        )
        if found["moves"]:
            out.table(
                ["from", "to", "devices", "download"],
                [[_side(move["before"]), _side(move["after"]), move["devices"], size_text(move["bytes"])] for move in found["moves"]],
            )

    out.emit(found, show_it)


@app.command("publish")
def publish(
    ctx: typer.Context,
    *,
    collection: Collection,
    rules: Rules = None,
    note: Note = "",
    check: Annotated[bool, typer.Option("--check", help="Check everything, change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the draft (or --rules, which become the draft) the next revision. Devices get its answers from their next request on."""
    client, out = begin(ctx, as_json)
    with client:
        if rules is not None:
            client.collections.put_draft(collection, _read(rules))
        done = client.collections.publish(collection, note=note, validate_only=check)
    out.emit(done, lambda: _show_published(out, collection, done))


@app.command("revert")
def revert(
    ctx: typer.Context,
    *,
    collection: Collection,
    revision: Annotated[int | None, typer.Argument(min=1, help="Revision to return to; without it the one before.")] = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Publish an earlier revision again, as a new one. The draft stays as it is."""
    client, out = begin(ctx, as_json)
    with client:
        wanted = revision or _one_before(client, collection)
        done = client.collections.revert(collection, wanted, note=note)
    out.emit(done, lambda: _show_published(out, collection, done))


@app.command("revisions")
def revisions(ctx: typer.Context, collection: Collection, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List revisions, the newest first."""
    client, out = begin(ctx, as_json)
    columns = {"revision": "revision", "published": "published_at", "by": "published_by", "reverted to": "reverted_to", "note": "note"}
    with client:
        out.items(
            islice(client.collections.revisions(collection), limit),
            columns,
            f"nothing is published: latebind collection publish {collection}",
        )


@app.command("explain")
def explain(
    ctx: typer.Context,
    *,
    collection: Collection,
    install: Annotated[str | None, typer.Option(help="Install id of a device that has asked.")] = None,
    kind: Annotated[str | None, typer.Option(help="A built-in kind of device, such as pixel-9.")] = None,
    context: Annotated[Path | None, typer.Option(help="A device context as JSON.")] = None,
    revision: Annotated[int | None, typer.Option(min=1, help="Another revision than the published one.")] = None,
    draft: Annotated[bool, typer.Option("--draft", help="The draft instead of what is published.")] = False,
    at: Annotated[str | None, typer.Option(help="A moment, RFC 3339; without it now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a device gets and, rule by rule, why. Without a device it is this machine."""
    client, out = begin(ctx, as_json)
    asked = None if install is not None else context_of(kind, context)
    with client:
        found = client.collections.explain(collection, context=asked, install_id=install, revision=revision, draft=draft or None, at=at)
    out.emit(found, lambda: show_explanation(out, found))


def _read(source: str) -> dict[str, Any]:
    """Rules from a file or stdin. Raises CommandError."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        return _parse(text, source)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{source} cannot be read: {error}", hint="name a JSON file, or - for stdin") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    hint = 'rules look like {"rules": [], "default": {"model": "digits", "alias": "stable"}}; see docs/rules.md'
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{source} holds no JSON: {error}", hint=hint) from error
    if not isinstance(document, dict):
        raise CommandError(f"{source} holds no rules document", hint=hint)
    return document


def _edited(draft: dict[str, Any], collection: str) -> dict[str, Any]:
    """The draft after somebody has edited it. Raises CommandError when there is no terminal or the editor fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise CommandError("no editor is known", hint=f"set EDITOR, or: latebind collection edit {collection} --rules FILE")
    with tempfile.NamedTemporaryFile("w", prefix=f"{collection}-", suffix=".json", encoding="utf-8") as file:
        file.write(json.dumps(draft, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        ended = subprocess.run([*shlex.split(editor), file.name], check=False)  # noqa: S603 - the user's own editor
        if ended.returncode:
            raise CommandError(f"{editor} ended with {ended.returncode}; the draft stays as it is", hint="edit again, or pass --rules FILE")
        return _parse(Path(file.name).read_text(encoding="utf-8"), "what was written")


def _one_before(client: latebind.Client, collection: str) -> int:
    newest = list(islice(client.collections.revisions(collection), 2))
    if len(newest) < 2:
        raise CommandError("there is no earlier revision", hint=f"latebind collection revisions {collection}")
    return int(newest[1]["revision"])


def _show_published(out: Output, collection: str, done: dict[str, Any]) -> None:
    revision = done["revision"]
    if revision is None:
        out.done("the rules can be published; nothing was changed")
    else:
        out.done(f"{collection} is at revision {revision['revision']}; devices get its answers from their next request on")
    _show_findings(out, done["findings"])


def _show_findings(out: Output, findings: Sequence[dict[str, Any]], *, empty: str | None = None) -> None:
    for finding in findings:
        text = f"{finding['rule_id']}: {finding['detail']}" if finding["rule_id"] else finding["detail"]
        (out.warn if finding["severity"] == "warning" else out.note)(f"{finding['code'].lower()}  {text}")
    if not findings and empty:
        out.done(empty)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} ({code})" for code, count in counts.items()) or "0"


def _side(side: dict[str, Any]) -> str:
    return f"{side['model_id']} v{side['version']} {side['variant']}" if side["digest"] else str(side["reason"]).lower().replace("_", " ")
