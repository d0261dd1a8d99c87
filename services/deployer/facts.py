"""The device context: from what a device sent to what rules read.

Pure. Unknown keys are kept under `attributes`, bounded in count and size; wrong types of known keys are left as they are, because
rules treat them as missing (PRODUCT sections 5 and 6). Who the device is and which country the edge saw are arguments.
"""

from __future__ import annotations

from typing import Any

MAX_ATTRIBUTES = 64
MAX_NAME = 128
MAX_TEXT = 1_024
MAX_MEMBERS = 64
MAX_RUNTIMES = 32
MAX_INSTALLED = 256

TOP = frozenset({"install_id", "app", "sdk", "device", "os", "locale", "country", "groups", "runtimes", "attributes", "installed"})
SECTIONS: dict[str, frozenset[str]] = {
    "app": frozenset({"id", "version"}),
    "sdk": frozenset({"name", "version"}),
    "device": frozenset({"model", "manufacturer", "soc", "abi", "ram_mb", "accelerators"}),
    "os": frozenset({"name", "version", "api_level"}),
}
_SECTIONS = tuple(SECTIONS.items())
_NOTHING: dict[str, Any] = {}


class ContextProblem(ValueError):
    """The device context has a shape that cannot be read. The text says what and where."""


def facts_of(context: Any, country: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the context by section: "" (the top level), app, sdk, device, os, attributes.

    Args:
        context: the decoded JSON of the request.
        country: what a trusted proxy says; it takes the place of the device's own word.

    Raises:
        ContextProblem: not an object, a section that is not one, or attributes over the bounds.
    """
    if type(context) is not dict:
        raise ContextProblem("the device context is an object")
    facts = {"": context}
    strangers = not TOP.issuperset(context)
    for name, known in _SECTIONS:
        section = context.get(name)
        if type(section) is dict:
            facts[name] = section
            if not known.issuperset(section):
                strangers = True
        elif section is None:
            facts[name] = _NOTHING
        else:
            raise ContextProblem(f"'{name}' is an object")
    attributes = context.get("attributes")
    if attributes is None:
        attributes = _NOTHING
    elif attributes:
        _check_attributes(attributes)
    facts["attributes"] = attributes
    if strangers:
        facts["attributes"] = _with_strangers(facts)
    if country is not None:
        facts[""] = {**context, "country": country}
    return facts


def context_of(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the context again, as it is stored: known keys, unknown ones under `attributes`, lists cut to their bounds."""
    top = facts[""]
    context: dict[str, Any] = {name: top[name] for name in ("install_id", "locale", "country", "groups") if _storable(top.get(name))}
    for name, known in SECTIONS.items():
        kept = {key: value for key, value in facts[name].items() if key in known and _storable(value)}
        if kept:
            context[name] = kept
    runtimes = top.get("runtimes")
    if type(runtimes) is list:
        context["runtimes"] = [_plain(runtime) for runtime in runtimes[:MAX_RUNTIMES] if type(runtime) is dict]
    if facts["attributes"]:
        context["attributes"] = facts["attributes"]
    installed = top.get("installed")
    if type(installed) is list:
        context["installed"] = [_plain(package) for package in installed[:MAX_INSTALLED] if type(package) is dict]
    return context


def installed_digests(context: dict[str, Any]) -> frozenset[str]:
    """Return the digests (plain hex) of the packages that the device has. Both `sha256:<hex>` and `<hex>` are read."""
    installed = context.get("installed")
    if type(installed) is not list:
        return frozenset()
    digests = (item.get("package") for item in installed if type(item) is dict)
    return frozenset(digest.removeprefix("sha256:") for digest in digests if type(digest) is str)


def _check_attributes(attributes: Any) -> None:
    if type(attributes) is not dict:
        raise ContextProblem("'attributes' is an object")
    if len(attributes) > MAX_ATTRIBUTES:
        raise ContextProblem(f"at most {MAX_ATTRIBUTES} attributes are kept, these are {len(attributes)}")
    for name, value in attributes.items():
        if type(value) is str and len(value) <= MAX_TEXT and len(name) <= MAX_NAME:
            continue
        if len(name) > MAX_NAME:
            raise ContextProblem(f"the name of an attribute has at most {MAX_NAME} characters")
        if value is not None and not _typed(value):
            raise ContextProblem(
                f"attribute '{name}' is neither a text of at most {MAX_TEXT} characters, a number, true or false, "
                f"nor a list of at most {MAX_MEMBERS} texts"
            )


def _typed(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return len(value) <= MAX_TEXT
    if kind is list:
        return len(value) <= MAX_MEMBERS and all(type(member) is str and len(member) <= MAX_TEXT for member in value)
    return kind is int or kind is float or kind is bool


def _with_strangers(facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Add unknown keys as attributes (`device.npu_tops`); explicit attributes win, and what is over the bounds is left out."""
    attributes = dict(facts["attributes"])
    for section, known in (("", TOP), *SECTIONS.items()):
        for key, value in facts[section].items():
            if key in known:
                continue
            name = f"{section}.{key}" if section else key
            members = {name: value} if type(value) is not dict else {f"{name}.{inner}": item for inner, item in value.items()}
            for member, item in members.items():
                room = len(attributes) < MAX_ATTRIBUTES and len(member) <= MAX_NAME
                if room and attributes.get(member) is None and item is not None and _typed(item):
                    attributes[member] = item
    return attributes


def _storable(value: Any) -> bool:
    return value is not None and _typed(value)


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """Keep the texts and numbers of a small object."""
    return {key: value for key, value in list(item.items())[:16] if type(value) in (str, int, float, bool) and _typed(value)}
