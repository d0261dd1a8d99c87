"""One OpenAPI document out of the services' documents, and a page that shows it without anything from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from gateway.routes import check_operations
from gateway.upstreams import UpstreamUnavailable, ask
from kit.http import ASGIApp
from kit.identity import PrincipalSeal

_INFO = {
    "title": "Latebind",
    "version": "1",
    "description": "Late artifact binding: models, packages, collections, devices, analytics. Errors are application/problem+json.",
}


async def fetch_document(name: str, upstream: ASGIApp, seal: PrincipalSeal) -> dict[str, Any]:
    """Return one service's document. Raises `RouteMissing` when the gateway's table does not fit it."""
    status, document = await ask(upstream, seal, "GET", "/internal/openapi.json")
    if status != 200:
        raise UpstreamUnavailable(f"the {name} service does not tell its API")
    check_operations(name, document)
    return dict(document)


def merge(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return one document. Schemas that differ under one name get the service's name in front.

    Raises `ValueError` when two operations have one id.
    """
    merged: dict[str, Any] = {"openapi": "3.1.0", "info": _INFO, "paths": {}, "components": {"schemas": {}, "securitySchemes": {}}}
    seen: dict[str, str] = {}
    for name, document in documents.items():
        components = document.get("components", {})
        merged["components"]["securitySchemes"].update(components.get("securitySchemes", {}))
        schemas = components.get("schemas", {})
        taken = merged["components"]["schemas"]
        renamed = {schema: f"{name.capitalize()}{schema}" for schema, body in schemas.items() if schema in taken and taken[schema] != body}
        text = json.dumps({"paths": document.get("paths", {}), "schemas": schemas})
        for old, new in renamed.items():
            text = text.replace(f'"#/components/schemas/{old}"', f'"#/components/schemas/{new}"')
        moved = json.loads(text)
        taken.update({renamed.get(schema, schema): body for schema, body in moved["schemas"].items()})
        for path, operations in moved["paths"].items():
            for operation in operations.values():
                operation_id = operation.get("operationId", "")
                if operation_id in seen:
                    raise ValueError(f"operation id {operation_id!r} is used by {seen[operation_id]} and {name}")
                seen[operation_id] = name
            merged["paths"].setdefault(path, {}).update(operations)
    merged["paths"] = dict(sorted(merged["paths"].items()))
    return merged


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:2rem;color:#1b1f24;background:#fff}
h1{font-size:1.6rem}h2{margin-top:2.2rem;border-bottom:1px solid #d5dae0}
details{border:1px solid #d5dae0;border-radius:6px;margin:.4rem 0;padding:.4rem .8rem}summary{cursor:pointer}
code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#f5f7f9;padding:.8rem;overflow:auto;border-radius:6px}
.method{display:inline-block;min-width:5rem;font-weight:700;color:#0b5cad}.access{float:right;color:#57606a;font-size:.85rem}
"""


def page(document: Mapping[str, Any]) -> str:
    """Return the document as one HTML page, grouped by tag, without scripts."""
    schemas = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(method, path, operation))
    listed = "".join(f"<h2>{html.escape(tag)}</h2>{''.join(entries)}" for tag, entries in sorted(groups.items()))
    shapes = "".join(
        f'<details id="schema-{html.escape(name)}"><summary><code>{html.escape(name)}</code></summary>{_pre(schema)}</details>'
        for name, schema in sorted(schemas.items())
    )
    title = html.escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} API</title><style>{_STYLE}</style></head>'
        f"<body><h1>{title} API</h1><p>{html.escape(document['info']['description'])}</p>"
        f'<p>The same as JSON: <a href="/openapi.json">/openapi.json</a></p>{listed}<h2>Schemas</h2>{shapes}</body></html>'
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    described = {key: operation[key] for key in ("parameters", "requestBody", "responses") if operation.get(key)}
    head = f'<span class="method">{method.upper()}</span><code>{html.escape(path)}</code>'
    access = f'<span class="access">{html.escape(str(operation.get("x-latebind-access", "")).replace("_", " "))}</span>'
    text = html.escape(operation.get("description") or operation.get("summary") or "")
    return (
        f"<details><summary>{access}{head} {html.escape(operation.get('summary') or '')}</summary><p>{text}</p>{_pre(described)}</details>"
    )


def _pre(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
