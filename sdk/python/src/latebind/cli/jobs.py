"""`latebind jobs`: packaging jobs, and how a command waits for one."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

import latebind
from latebind.cli._errors import JobFailed
from latebind.cli._output import Columns, Output, short, size_text
from latebind.cli._state import AsJson, Limit, begin

app = typer.Typer()

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id.")]


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    *,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List packaging jobs, the newest first."""
    client, out = begin(ctx, as_json)
    columns: Columns = {
        "job": "job_id",
        "version": lambda job: f"{job['model_id']} v{job['version']}",
        "state": "state",
        "step": "step",
        "problem": lambda job: job["problem"]["code"] if job["problem"] else None,
        "created": "created_at",
    }
    with client:
        out.items(islice(client.jobs.list(model_id=model, state=state), limit), columns, "no jobs yet: latebind push FILE --model NAME")


@app.command("watch")
def watch(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Follow a job until it has ended. Fails (7) when the job fails."""
    client, out = begin(ctx, as_json)
    with client:
        ended = follow(client, out, job)
    out.emit(ended, lambda: show_packages(out, ended))


@app.command("cancel")
def cancel(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """End a job that waits or runs."""
    client, out = begin(ctx, as_json)
    with client:
        cancelled = client.jobs.cancel(job)
    out.emit(cancelled, lambda: out.done(f"{job} is {cancelled['state']}"))


def follow(client: latebind.Client, out: Output, job_id: str, label: str = "", *, lines: bool = False) -> dict[str, Any]:
    """Wait for a job with its progress on stderr; the job once it has succeeded. Raises JobFailed.

    `lines`: keep each line of the log on the screen, for jobs that take long.
    """
    with out.steps(label or job_id) as step:

        def told(line: Any) -> None:
            text = line["text"] or line["step"]
            step(f"{label or job_id}: {text}", line["progress"])
            if lines:
                out.note(f"{round(line['progress'] * 100):3d} %  {text}")

        job = client.jobs.watch(job_id, told)
    if job["state"] != "succeeded":
        problem = job.get("problem") or {}
        code = problem.get("code") or job["state"].upper()
        detail = problem.get("detail") or f"the job was {job['state']}"
        hint = f"latebind jobs watch {job_id} shows the log again; correct the model or its declaration and push it as the next version"
        raise JobFailed(f"{job['model_id']} v{job['version']} was not packaged: {detail}", code=code, hint=hint)
    return job


def show_packages(out: Output, job: dict[str, Any]) -> None:
    """Show what a job made."""
    packages = (job.get("result") or {}).get("packages", [])
    out.done(f"{job['model_id']} v{job['version']} is packaged")
    out.table(["variant", "size", "package"], [[one["variant"], size_text(one["size"]), short(one["digest"])] for one in packages])
