"""A raw ASGI application that reads the body and answers like a steady resolve: `python -m bench._raw_twin PORT`."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

_ETAG = b'"0123456789abcdef.0123456789abcdef.0123456789abcdef"'
_START = {
    "type": "http.response.start",
    "status": 304,
    "headers": [(b"etag", _ETAG), (b"latebind-poll", b"after=3600; spread=600")],
}
_BODY = {"type": "http.response.body", "body": b""}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the request, answer 304."""
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    b"".join(parts)
    await send(_START)
    await send(_BODY)


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
    )
