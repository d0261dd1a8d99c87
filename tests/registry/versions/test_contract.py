"""The contract of a model at each level, against a plain oracle that shares no code with it (SEC-C14), and what the API says of it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from latebind_proto import events_pb2
from services.registry.versions.contract import (
    Contract,
    ContractLevel,
    added_up,
    breaches,
    contract_from_json,
    contract_of,
    contract_to_json,
)
from tests.registry.conftest import Registry, code

LEVELS = ["frozen", "additive"]
KINDS: dict[str, list[Any]] = {
    "int": [0, 13, -5],
    "float": [0.5, 2.0],
    "bool": [True, False],
    "string": ["", "a"],
    "int[]": [[], [1, 2]],
    "float[]": [[0.5]],
    "string[]": [["x"]],
    "json": [{"a": 1}, 7],
}
NAMES = ["S", "B", "C", "threshold", "labels", "anchors"]
TENSORS = ["image", "mask", "grid", "boxes"]
DTYPES = ["float32", "int8", "int64"]
DIMENSIONS: list[Any] = [1, 13, 19, None, "N", "height"]


def some_parameter(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(list(KINDS))
    made = {"type": kind, "value": rng.choice(KINDS[kind])}
    return {**made, "default": rng.choice(KINDS[kind])} if rng.random() < 0.5 else made


def some_tensor(rng: random.Random, name: str) -> dict[str, Any]:
    return {"name": name, "dtype": rng.choice(DTYPES), "shape": [rng.choice(DIMENSIONS) for _ in range(rng.randint(0, 4))]}


def some_declaration(rng: random.Random) -> dict[str, Any]:
    return {
        "params": {name: some_parameter(rng) for name in rng.sample(NAMES, rng.randint(0, 4))},
        "inputs": [some_tensor(rng, name) for name in rng.sample(TENSORS, rng.randint(1, 2))],
        "outputs": [some_tensor(rng, name) for name in rng.sample(TENSORS, rng.randint(1, 3))],
    }


def change(rng: random.Random, declaration: dict[str, Any]) -> dict[str, Any]:
    """One to three small edits, each of which may keep or break the contract."""
    made = copy.deepcopy(declaration)
    for _ in range(rng.randint(1, 3)):
        params, side = made["params"], made[rng.choice(["inputs", "outputs"])]
        edit = rng.choice(["add", "drop", "value", "type", "size", "name", "dtype", "rank", "tensor", "rename", "order"])
        if edit == "add":
            params.setdefault(rng.choice(NAMES), some_parameter(rng))
        elif edit == "drop" and params:
            del params[rng.choice(list(params))]
        elif edit == "value" and params:
            one = params[rng.choice(list(params))]
            one["value"] = rng.choice(KINDS[one["type"]])
        elif edit == "type" and params:
            params[rng.choice(list(params))] = some_parameter(rng)
        elif edit in {"size", "name"}:
            tensor = rng.choice(side)
            if tensor["shape"]:
                tensor["shape"][rng.randrange(len(tensor["shape"]))] = rng.choice(DIMENSIONS)
        elif edit == "dtype":
            rng.choice(side)["dtype"] = rng.choice(DTYPES)
        elif edit == "rank":
            rng.choice(side)["shape"].append(rng.choice(DIMENSIONS))
        elif edit == "tensor":
            name = rng.choice(TENSORS)
            if name not in {one["name"] for one in side}:
                side.append(some_tensor(rng, name))
        elif edit == "rename" and len(side) > 1:
            side.pop()
        elif edit == "order":
            side.reverse()
    return made


def oracle(old: dict[str, Any], new: dict[str, Any], level: str) -> set[tuple[str, str, str]]:
    """What docs/contract.md says, in the plainest words: (where, name, what) of every broken promise."""
    broken = set()
    for name in old["params"]:
        if name not in new["params"]:
            broken.add(("parameters", name, "missing"))
        elif new["params"][name]["type"] != old["params"][name]["type"]:
            broken.add(("parameters", name, "type"))
    for name in new["params"]:
        if name not in old["params"]:
            if level == "frozen":
                broken.add(("parameters", name, "added"))
            if level == "additive" and "default" not in new["params"][name]:
                broken.add(("parameters", name, "no_default"))
    for side in ("inputs", "outputs"):
        before = {one["name"]: one for one in old[side]}
        after = {one["name"]: one for one in new[side]}
        broken |= {(side, name, "missing") for name in before if name not in after}
        broken |= {(side, name, "added") for name in after if name not in before}
        for name in before:
            if name not in after:
                continue
            if before[name]["dtype"] != after[name]["dtype"]:
                broken.add((side, name, "dtype"))
            here, there = before[name]["shape"], after[name]["shape"]
            if len(here) != len(there):
                broken.add((side, name, "rank"))
                continue
            for place in range(len(here)):
                one = here[place] if isinstance(here[place], str) else "-"
                other = there[place] if isinstance(there[place], str) else "-"
                if one != other:
                    broken.add((side, name, f"dimension {place}"))
    return broken


def named(found: Any) -> set[tuple[str, str, str]]:
    """Breaches, as values or as JSON, in the oracle's words."""
    listed = [one if isinstance(one, dict) else {name: getattr(one, name) for name in one.__slots__} for one in found]
    told = [(one["area"], one["name"], f"dimension {one['position']}" if one["change"] == "dimension" else one["change"]) for one in listed]
    assert len(set(told)) == len(told)
    return set(told)


@pytest.mark.parametrize("level", LEVELS)
def test_generated_changes_break_exactly_what_the_oracle_says(level: str) -> None:
    rng = random.Random(f"contract {level}")
    kept = broken = 0
    for _ in range(1_200):
        old = some_declaration(rng)
        new = change(rng, old)
        expected = oracle(old, new, level)
        found = breaches(contract_of(old), contract_of(new), ContractLevel(level))
        assert named(found) == expected, (old, new)
        kept, broken = kept + (not expected), broken + bool(expected)
    assert min(kept, broken) >= 200  # both sides are really tried


@pytest.mark.parametrize("level", LEVELS)
async def test_commits_are_refused_and_accepted_as_the_oracle_says(registry: Registry, level: str) -> None:
    """The same through the API: what the answer lists is what is broken, and nothing that is refused binds anything."""
    rng = random.Random(f"commits {level}")
    file = await registry.declaration()
    answers = set()
    for number in range(40):
        old = some_declaration(rng)
        new = change(rng, old)
        model = f"m{number}"
        made = await registry.acme.post("/v1/models", json={"model_id": model, "contract_level": level})
        assert made.status_code == 201, made.text
        for declaration in (old, new):
            drafted = await registry.acme.post(f"/v1/models/{model}/versions", json={**file, **declaration})
            assert drafted.status_code == 201, drafted.text
        await registry.commit(1, model)
        answer = await registry.acme.post(f"/v1/models/{model}/versions/2:commit")
        expected = oracle(old, new, level)
        answers.add(answer.status_code)
        assert answer.status_code == (409 if expected else 202), answer.text
        if expected:
            assert named(answer.json()["breaches"]) == expected
            assert all(name in answer.json()["detail"] for _, name, _ in expected)
        compared = (await registry.acme.get(f"/v1/models/{model}/versions/1:compare", params={"to": 2})).json()
        assert (named(compared["breaches"]), compared["contract_level"]) == (expected, level)
        contract = (await registry.acme.get(f"/v1/models/{model}")).json()["contract"]
        assert contract.keys() == (old if expected else {"params": {**old["params"], **new["params"]}})["params"].keys()
    assert answers == {202, 409}


def test_a_contract_is_stored_and_read_back() -> None:
    rng = random.Random("json")
    for _ in range(50):
        contract = contract_of(some_declaration(rng))
        assert contract_from_json(contract_to_json(contract)) == contract
    assert contract_from_json(contract_to_json(Contract())) == Contract()


def test_the_first_promises_stay_when_versions_add_up() -> None:
    """Whatever is accepted one after the other, the last one still keeps what the first has promised."""
    rng = random.Random("adding up")
    accepted = 0
    for _ in range(60):
        newest = some_declaration(rng)
        first = promised = contract_of(newest)
        for _ in range(12):
            changed = change(rng, newest)
            new = contract_of(changed)
            if not breaches(promised, new, ContractLevel.ADDITIVE):
                newest, promised, accepted = changed, added_up(promised, new), accepted + 1
                assert oracle_of_promises(first, new) == []
    assert accepted > 100


def oracle_of_promises(first: Contract, new: Contract) -> list[str]:
    """Parameters of the first version that the new one lacks or has with another type."""
    return [name for name, one in first.params.items() if name not in new.params or new.params[name].type != one.type]


TINY_YOLO = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 416, 416, 3]}],
    "outputs": [{"name": "grid", "dtype": "float32", "shape": [1, 13, 13, 125]}],
}


def yolo(cells: int, boxes: int, classes: int) -> dict[str, Any]:
    values = {"S": cells, "B": boxes, "C": classes}
    grid = {"name": "grid", "dtype": "float32", "shape": [1, cells, cells, boxes * (classes + 5)]}
    return {**TINY_YOLO, "outputs": [grid], "params": {name: {"type": "int", "value": value} for name, value in values.items()}}


async def test_other_cells_boxes_and_classes_need_no_client_change(registry: Registry) -> None:
    """PRODUCT section 2: from 13×13/5/20 to 19×19/8/40, with the default level."""
    await registry.create_model("tiny-yolo-v2")
    await registry.create_version("tiny-yolo-v2", **yolo(13, 5, 20))
    await registry.commit(1, "tiny-yolo-v2")
    await registry.create_version("tiny-yolo-v2", **yolo(19, 8, 40))
    await registry.commit(2, "tiny-yolo-v2")


async def test_an_added_parameter_stays_and_its_default_is_shown(registry: Registry) -> None:
    await registry.acme.post("/v1/models", json={"model_id": "digits", "contract_level": "additive"})
    one = {"S": {"type": "int", "value": 1}}
    two = {**one, "T": {"type": "float", "value": 0.4, "default": 0.5}}
    for params in (one, two, one, {**two, "T": {"type": "float", "value": 0.1}}):
        await registry.create_version(params=params)
    await registry.commit(1)
    await registry.commit(2)
    refused = await registry.acme.post("/v1/models/digits/versions/3:commit")
    assert (code(refused), named(refused.json()["breaches"])) == ((409, "PARAMETER_CONTRACT_BROKEN"), {("parameters", "T", "missing")})
    await registry.commit(4)
    model = (await registry.acme.get("/v1/models/digits")).json()
    assert (model["contract"], model["contract_defaults"]) == ({"S": "int", "T": "float"}, {"T": 0.5})
    assert (await registry.acme.get("/v1/models/digits/versions/2")).json()["declaration"]["params"] == two


async def test_a_version_that_fails_takes_its_additions_with_it(registry: Registry) -> None:
    await registry.acme.post("/v1/models", json={"model_id": "digits", "contract_level": "additive"})
    one = {"S": {"type": "int", "value": 1}}
    await registry.create_version(params=one)
    await registry.create_version(params={**one, "T": {"type": "int", "value": 1, "default": 2}})
    await registry.create_version(params=one)
    await registry.commit(1)
    job_id = await registry.commit(2)
    assert code(await registry.acme.post("/v1/models/digits/versions/3:commit"))[0] == 409
    failed = events_pb2.PackageFailed(account="acme", model_id="digits", version=2, job_id=job_id, code="X", detail="x")
    await registry.tell("package.failed", failed.SerializeToString())
    await registry.take_news()
    await registry.commit(3)


async def test_a_default_is_of_the_parameter_s_type_and_a_file_has_none(registry: Registry) -> None:
    await registry.create_model()
    file = {"path": "a.txt", **await registry.upload(b"a")}
    wrong: list[dict[str, Any]] = [
        {"type": "int", "value": 1, "default": "1"},
        {"type": "float[]", "value": [], "default": [True]},
        {"type": "file", "value": "a.txt", "default": "a.txt"},
    ]
    for param in wrong:
        body = await registry.declaration(params={"p": param}, files=[file])
        answer = await registry.acme.post("/v1/models/digits/versions", json=body)
        assert (code(answer), answer.json()["errors"][0]["field"]) == ((400, "DECLARATION_INVALID"), "params.p.default")


async def test_the_level_is_set_by_somebody_at_some_time(registry: Registry) -> None:
    await registry.create_model()
    before = (await registry.acme.get("/v1/models/digits")).json()
    assert (before["contract_level"], before["contract_set_by"]) == ("frozen", "key-acme")
    registry.clock.advance(60)
    await registry.acme.patch("/v1/models/digits", json={"description": "x", "contract_level": "frozen"})
    same = (await registry.acme.get("/v1/models/digits")).json()
    assert same["contract_set_at"] == before["contract_set_at"]  # it was frozen before: nobody has changed it
    changed = await registry.acme.patch("/v1/models/digits", json={"contract_level": "additive"})
    assert (changed.status_code, changed.json()["contract_level"]) == (200, "additive")
    assert changed.json()["contract_set_at"] > before["contract_set_at"]
    assert (await registry.acme.get("/v1/models")).json()["items"][0]["contract_level"] == "additive"
    assert code(await registry.acme.patch("/v1/models/digits", json={"contract_level": "loose"})) == (422, "MALFORMED_BODY")
    await registry.create_version(params={"S": {"type": "int", "value": 1}})
    await registry.commit(1)
    await registry.create_version(params={"S": {"type": "int", "value": 1}, "T": {"type": "int", "value": 1, "default": 1}})
    await registry.acme.patch("/v1/models/digits", json={"contract_level": "frozen"})
    assert code(await registry.acme.post("/v1/models/digits/versions/2:commit")) == (409, "PARAMETER_CONTRACT_BROKEN")
    await registry.acme.patch("/v1/models/digits", json={"contract_level": "additive"})
    await registry.commit(2)


async def test_what_was_not_declared_is_held_when_the_model_was_read(registry: Registry) -> None:
    """A version without declared tensors is judged by its model's own: it fails with every breach in its problem, and binds nothing."""
    await registry.create_model()
    await registry.create_version(inputs=[{"name": "x", "dtype": "float32", "shape": ["N", None]}])
    await registry.make_ready(1)  # its model's output is y float32 [1, n]
    shown = (await registry.acme.get("/v1/models/digits")).json()["contract_tensors"]
    assert shown == {
        "inputs": [{"name": "x", "dtype": "float32", "rank": 2, "dimensions": {"0": "N"}}],
        "outputs": [{"name": "y", "dtype": "float32", "rank": 2, "dimensions": {}}],
    }
    await registry.create_version()  # its model's input is x float32 [1, ?]: the promised N is gone
    await registry.make_ready(2)
    failed = (await registry.acme.get("/v1/models/digits/versions/2")).json()
    assert (failed["state"], failed["problem"]["code"], failed["packages"]) == ("failed", "TENSOR_CONTRACT_BROKEN", [])
    assert "input x dimension 0 (N → unnamed)" in failed["problem"]["detail"]
    declared = [{"name": "x", "dtype": "float32", "shape": ["N", 2]}]
    await registry.create_version(inputs=declared, outputs=[{"name": "y", "dtype": "int64", "shape": [1, 2, 3]}])
    refused = await registry.acme.post("/v1/models/digits/versions/3:commit")
    assert code(refused) == (409, "TENSOR_CONTRACT_BROKEN")
    assert refused.json()["breaches"] == [
        {"area": "outputs", "name": "y", "change": "dtype", "old": "float32", "new": "int64", "position": None},
        {"area": "outputs", "name": "y", "change": "rank", "old": 2, "new": 3, "position": None},
    ]
    # Names for dimensions that only the first model gave were no promise, so the owner may name them as they like.
    await registry.create_version(inputs=declared, outputs=[{"name": "y", "dtype": "float32", "shape": ["N", 10]}])
    await registry.make_ready(4)
    assert (await registry.acme.get("/v1/models/digits/versions/4")).json()["state"] == "ready"


async def test_two_versions_in_packaging_are_held_against_each_other(registry: Registry) -> None:
    await registry.acme.post("/v1/models", json={"model_id": "digits", "contract_level": "additive"})
    params: dict[str, Any] = {"S": {"type": "int", "value": 1}}
    await registry.create_version(params=params)
    await registry.create_version(params={**params, "T": {"type": "int", "value": 1, "default": 2}})
    jobs = [await registry.commit(number) for number in (1, 2)]
    await registry.make_ready(2, job_id=jobs[1])
    await registry.make_ready(1, job_id=jobs[0])  # it lacks T, which was added after it: no breach
    states = [one["state"] for one in (await registry.acme.get("/v1/models/digits/versions")).json()["items"]]
    assert states == ["ready", "ready"]


async def publish(registry: Registry, collection: str, *models: str, account: str = "acme") -> None:
    message = events_pb2.CollectionPublished(account=account, collection=collection, revision=1, name="Cameras", model_ids=models)
    await registry.tell("collection.published", message.SerializeToString())
    await registry.take_news()


async def test_a_breach_names_the_collections_that_serve_the_model(registry: Registry) -> None:
    await registry.create_model()
    await registry.create_version(params={"S": {"type": "int", "value": 1}})
    await registry.commit(1)
    await registry.create_version(params={})
    await publish(registry, "c_two", "digits", "other")
    await publish(registry, "c_one", "digits")
    await publish(registry, "c_old", "digits")
    await publish(registry, "c_old", "other")  # published again, without it
    await publish(registry, "c_foreign", "digits", account="other")
    refused = await registry.acme.post("/v1/models/digits/versions/2:commit")
    assert refused.json()["collections"] == [{"id": "c_one", "name": "Cameras"}, {"id": "c_two", "name": "Cameras"}]
    assert "c_one, c_two" in refused.json()["detail"]
