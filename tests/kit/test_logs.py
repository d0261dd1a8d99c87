"""One format for everything, and no secret in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from kit.context import request_id
from kit.logs import REDACTED, configure_logging, get_logger, log_context, redact

KEY = "lbk_" + "a1" * 6 + "_" + "S" * 43 + "_0a1b2c"
SECRETS = [
    KEY,
    KEY.replace("lbk", "lbo"),
    KEY.replace("lbk", "lbe"),
    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
]


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    configure_logging(json=True, stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:], root.level = before[0], before[1]


def last(stream: io.StringIO) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stream.getvalue().splitlines()[-1])
    return found


def test_our_lines_and_those_of_libraries_have_one_format(lines: io.StringIO) -> None:
    get_logger("kit.test").warning("something happened", number=3)
    ours = last(lines)
    for name in ("uvicorn.error", "uvicorn.access", "sqlalchemy", "some.library"):
        logging.getLogger(name).warning("number %d", 3)
        theirs = last(lines)
        assert theirs.keys() | {"number"} == ours.keys()
        assert (theirs["event"], theirs["level"], theirs["logger"]) == ("number 3", "warning", name)
    assert (ours["event"], ours["number"], ours["level"], ours["logger"]) == ("something happened", 3, "warning", "kit.test")
    assert ours["time"].endswith("Z")


def test_lines_below_the_level_are_not_written(lines: io.StringIO) -> None:
    get_logger("x").debug("quiet")
    logging.getLogger("x").debug("quiet")
    assert lines.getvalue() == ""


def test_a_library_that_repeats_itself_is_heard_every_ten_seconds(lines: io.StringIO) -> None:
    library = logging.getLogger("aiokafka.conn")

    def says(at: float, number: int) -> None:
        record = library.makeRecord(library.name, logging.ERROR, "", 0, "Unable to connect to node %s", (number,), None)
        record.created = at
        library.handle(record)

    for number in range(100):
        says(1000 + number / 11, number)
    library.error("something else")
    get_logger("kit.eventlog").error("ours")
    get_logger("kit.eventlog").error("ours")
    says(1010, 100)
    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == [
        "Unable to connect to node 0",
        "something else",
        "ours",
        "ours",
        "Unable to connect to node 100 (and 99 more like it)",
    ]


def test_context_is_on_every_line(lines: io.StringIO) -> None:
    token = request_id.set("r_1")
    with log_context(worker="w"):
        logging.getLogger("library").info("inside")
        assert {"request_id": "r_1", "worker": "w"}.items() <= last(lines).items()
    request_id.reset(token)
    get_logger("x").info("outside")
    assert not {"request_id", "worker"} & last(lines).keys()


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_written_wherever_it_stands(lines: io.StringIO, secret: str) -> None:
    log = get_logger("x")
    log.info(f"in the text {secret}", value=f"before {secret} after", nested={"list": [secret, (secret,)]}, raw=secret.encode())
    logging.getLogger("library").info("argument %s", secret)
    logging.getLogger("library").info("extra", extra={"found": f"Bearer {secret}"})
    try:
        raise ValueError(f"bad key {secret}")
    except ValueError:
        log.exception("failed")
    assert secret not in lines.getvalue()
    assert lines.getvalue().count(REDACTED) >= 7


@pytest.mark.parametrize(
    "key", ["authorization", "Authorization", "token", "access_token", "password", "api_key", "enrolment-key", "secret", "cookie", "tokens"]
)
def test_values_of_secret_keys_are_never_written(lines: io.StringIO, key: str) -> None:
    get_logger("x").info("said", headers={key: "plain words"}, **{key: "plain words"})
    assert "plain words" not in lines.getvalue()


def test_links_and_urls_lose_their_secrets() -> None:
    assert redact("GET /blobs/a/b?expires=1&signature=abcdefghijk HTTP/1.1") == f"GET /blobs/a/b?expires=1&signature={REDACTED} HTTP/1.1"
    assert redact("postgresql://user:pass@host/db") == f"postgresql://{REDACTED}@host/db"
    assert redact("Authorization: Bearer abcdefgh12345") == f"Authorization: Bearer {REDACTED}"


@pytest.mark.parametrize(
    "text", ["", "a plain sentence", "token of model_id", "2026-11-22T10:00:00Z", "a" * 64, "https://host/path", "lbk_short"]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert redact({"model_id": text, "key": 5, "none": None}) == {"model_id": text, "key": 5, "none": None}


def test_a_terminal_gets_lines_for_people() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    configure_logging(json=False, stream=stream)
    get_logger("x").info("hello", secret="hidden", number=1)
    structlog.reset_defaults()
    root.handlers[:], root.level = before[0], before[1]
    assert "hello" in stream.getvalue()
    assert "number" in stream.getvalue()
    assert "hidden" not in stream.getvalue()
