"""Devices that live on bundle files: what they run without a server, and that nothing but what the account signed gets in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latebind import DeviceAgent, Manager, ModelConfig
from latebind._bundles import BundledPackage, compact, write_bundle
from latebind.device.bundle import Bundle
from latebind.device.decision import PollResult
from latebind.device.verify import Trust, parse_given_trust
from latebind.errors import DeviceError, LatebindError, NotEnrolled, VerificationFailed
from tests.sdk.conftest import quick
from tests.sdk.simulator import ACCOUNT, COLLECTION, Key, Package, Simulator

MakeManager = Callable[..., Manager]
MakeAgent = Callable[..., DeviceAgent]
CONFIG = ModelConfig(ACCOUNT, COLLECTION)
X = np.zeros((1, 4), np.float32)
BUNDLE_TYPE = "application/vnd.latebind.bundle+json"


def keys_of(simulator: Simulator, account: str = ACCOUNT) -> dict[str, Any]:
    return {
        "account": account,
        "package_keys": [simulator.package_key.public()],
        "assignment_keys": [simulator.assignment_key.public()],
    }


def trust_of(simulator: Simulator) -> Trust:
    trust = parse_given_trust(keys_of(simulator), ACCOUNT)
    assert trust is not None
    return trust


def statement(simulator: Simulator, served: Mapping[str, list[Package]], *, key: Key | None = None, **changes: Any) -> dict[str, Any]:
    """What the server signs, written from docs/interop.md."""
    simulator.counter += 1
    payload = {
        "type": "latebind-bundle-v1",
        "account": ACCOUNT,
        "issued_at": "2026-11-30T10:00:00Z",
        "counter": simulator.counter,
        "names": [{"name": name, "revision": 3, "packages": [one.digest for one in listed]} for name, listed in served.items()],
    }
    return (key or simulator.assignment_key).envelope(BUNDLE_TYPE, json.dumps({**payload, **changes}).encode())


def write(simulator: Simulator, path: Path, envelope: dict[str, Any], *packages: Package) -> Path:
    """A bundle of these packages."""
    listed = []
    for package in packages:
        files = [(file["sha256"], file["size"]) for file in package.parsed["files"]]
        listed.append(BundledPackage(package.digest, package.manifest, compact(json.loads(package.signature)), files))
    write_bundle(path, envelope, listed, lambda sha256: io.BytesIO(simulator.blobs[sha256]))
    return path


@pytest.fixture
def bundle(simulator: Simulator, tmp_path: Path) -> Path:
    package = simulator.add_adder(1)
    return write(simulator, tmp_path / "models.bundle", statement(simulator, {COLLECTION: [package]}), package)


def test_a_device_without_a_server_runs_what_the_bundle_has(simulator: Simulator, bundle: Path, make_manager: MakeManager) -> None:
    (trust := bundle.with_name("trust.json")).write_text(json.dumps(keys_of(simulator)))
    manager = make_manager(server=None, bundle=bundle, trust=trust, enrolment_key=None)
    handle = manager.open_blocking(CONFIG)
    result = handle.run(X)
    assert result["y"].tolist() == [[1, 1, 1, 1]]
    assert (result.info.version, result.info.params["C"]) == (1, 1)
    assert handle.info.load_hyper_param_file("labels") == b"labels of version 1\n"
    assert not simulator.requests  # nothing was asked
    manager.close()
    bundle.unlink()
    again = make_manager(server=None, trust=keys_of(simulator))
    assert again.open_blocking(CONFIG).run(X)["y"][0, 0] == 1  # installed is installed


def test_a_newer_bundle_switches_open_handles_and_an_older_one_does_nothing(
    simulator: Simulator, bundle: Path, make_manager: MakeManager, tmp_path: Path
) -> None:
    package = simulator.add_adder(2)
    newer = write(simulator, tmp_path / "newer", statement(simulator, {COLLECTION: [package]}), package)
    manager = make_manager(server=None, bundle=bundle, trust=keys_of(simulator))
    handle = manager.open_blocking(CONFIG)
    handle.run(X)
    assert manager.install_bundle(CONFIG, newer).result is PollResult.SWITCHED
    assert handle.run(X).info.version == 2
    assert manager.install_bundle(CONFIG, bundle).result is PollResult.UNCHANGED  # a replay
    assert manager.install_bundle(CONFIG, newer).result is PollResult.UNCHANGED
    assert handle.run(X).info.version == 2
    # An operator's return to an older package is a new statement, with a higher counter.
    back = write(simulator, tmp_path / "back", statement(simulator, {COLLECTION: [one := simulator.add_adder(1)]}), one)
    assert manager.install_bundle(CONFIG, back).result is PollResult.SWITCHED


def test_the_first_package_that_can_run_is_taken(simulator: Simulator, make_manager: MakeManager, tmp_path: Path) -> None:
    other = simulator.add_package(b"other", engine="tensorrt", variant="trt-fp16")
    onnx = simulator.add_adder(4)
    path = write(simulator, tmp_path / "b", statement(simulator, {"digits": [other, onnx], COLLECTION: [other]}), other, onnx)
    manager = make_manager(server=None, bundle=path, trust=keys_of(simulator))
    assert manager.open_blocking(ModelConfig(ACCOUNT, "digits")).info.version == 4
    with pytest.raises(DeviceError) as caught:
        manager.open_blocking(CONFIG)
    assert caught.value.code == "ENGINE_MISSING"
    with pytest.raises(DeviceError) as caught:
        manager.open_blocking(ModelConfig(ACCOUNT, "c_other"))
    assert caught.value.code == "NOT_IN_BUNDLE"


def test_the_same_packages_make_the_same_bytes_and_any_tar_lists_them(simulator: Simulator, tmp_path: Path) -> None:
    package = simulator.add_adder(1, ballast=100_000)
    envelope = statement(simulator, {COLLECTION: [package]})
    paths = [write(simulator, tmp_path / name, envelope, package) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with tarfile.open(paths[0]) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert all(member.isreg() and (member.mode, member.uid, member.mtime) == (0o644, 0, 0) for member in members.values())
        files = {file["sha256"] for file in package.parsed["files"]}
        assert set(members) == {
            "bundle.json",
            f"packages/{package.digest}/manifest.json",
            f"packages/{package.digest}/signature.json",
            *(f"blobs/{sha256}" for sha256 in files),
        }
        for sha256 in files:
            opened = archive.extractfile(f"blobs/{sha256}")
            assert opened is not None and opened.read() == simulator.blobs[sha256]


def read_whole(path: Path, trust: Trust) -> None:
    """What installing does to a bundle, without the disk: open it, and hash every file. Raises what refuses it."""
    with Bundle(path, account=ACCOUNT, trust=trust) as opened:
        for manifest in opened.manifests.values():
            for file in manifest.files:
                with opened.blob(file.sha256, offset=0, timeout_s=1) as stream:
                    data = b"".join(stream.pieces())
                if hashlib.sha256(data).hexdigest() != file.sha256 or len(data) != file.size:
                    raise VerificationFailed("a file is not the one that was signed", code="DIGEST_MISMATCH")


def test_every_flipped_bit_is_found(simulator: Simulator, bundle: Path) -> None:
    """One bit of every byte of the file (SEC-A3): headers, gaps, signatures, manifest, files, and the end."""
    trust, data = trust_of(simulator), bytearray(bundle.read_bytes())
    rng = random.Random(1)
    read_whole(bundle, trust)
    accepted = []
    with bundle.open("r+b", buffering=0) as file:
        for place in range(len(data)):
            bit = 1 << rng.randrange(8)
            os.pwrite(file.fileno(), bytes([data[place] ^ bit]), place)
            try:
                read_whole(bundle, trust)
                accepted.append(place)
            except VerificationFailed:
                pass
            os.pwrite(file.fileno(), bytes([data[place]]), place)
    assert len(data) > 10_000 and accepted == []
    read_whole(bundle, trust)


def test_shortened_and_lengthened_files_are_found(simulator: Simulator, bundle: Path) -> None:
    trust, data = trust_of(simulator), bundle.read_bytes()
    rng = random.Random(2)
    lengths = {*range(0, len(data), 512), *(rng.randrange(len(data)) for _ in range(300)), len(data) - 1}
    for changed in [data[:length] for length in lengths] + [data + more for more in (b"\0", bytes(512), bytes(1024), data)]:
        bundle.write_bytes(changed)
        with pytest.raises(VerificationFailed):
            read_whole(bundle, trust)


def test_damaged_files_are_not_installed_and_what_runs_goes_on(
    simulator: Simulator, bundle: Path, make_agent: MakeAgent, tmp_path: Path
) -> None:
    """The same through the device itself: 40 flips of a newer bundle, and the state is what it was."""
    agent = make_agent(server="http://127.0.0.1:1", trust=trust_of(simulator), enrolment_key=None)
    assert agent.take_bundle(COLLECTION, bundle).result is PollResult.SWITCHED
    handle = agent.open(COLLECTION)
    handle.run(X)
    package = simulator.add_adder(2)
    newer = write(simulator, tmp_path / "newer", statement(simulator, {COLLECTION: [package]}), package)
    good = newer.read_bytes()
    graph = package.parsed["files"][0]
    start = good.index(simulator.blobs[graph["sha256"]])
    rng = random.Random(3)
    places = [rng.randrange(len(good)) for _ in range(37)] + [start, start + graph["size"] - 1, start + graph["size"] // 2]
    before = agent.updater(COLLECTION).state
    for place in places:
        newer.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        outcome = agent.take_bundle(COLLECTION, newer)
        # A file of a package that was assigned: the statement holds, the bytes do not.
        assert outcome.result in {PollResult.FAILED, PollResult.KEPT}, place
        assert isinstance(outcome.error, LatebindError)
        assert handle.run(X).info.version == 1
        assert agent.updater(COLLECTION).state.current == before.current
    agent.close(send=False)


LINKS: list[Callable[[tarfile.TarInfo], None]] = [
    lambda info: setattr(info, "name", "../../outside"),
    lambda info: setattr(info, "name", "/etc/passwd"),
    lambda info: setattr(info, "name", "blobs/../../outside"),
    lambda info: setattr(info, "name", "./" + info.name),
    lambda info: setattr(info, "name", f"{'d' * 60}/{'x' * 90}"),
    lambda info: (setattr(info, "type", tarfile.SYMTYPE), setattr(info, "linkname", "/etc/passwd"))[0],
    lambda info: (setattr(info, "type", tarfile.LNKTYPE), setattr(info, "linkname", "bundle.json"))[0],
    lambda info: setattr(info, "type", tarfile.CHRTYPE),
    lambda info: setattr(info, "type", tarfile.DIRTYPE),
    lambda info: setattr(info, "type", tarfile.FIFOTYPE),
    lambda info: setattr(info, "type", tarfile.CONTTYPE),
    lambda info: setattr(info, "mode", 0o4755),
    lambda info: setattr(info, "mtime", 1),
    lambda info: setattr(info, "uname", "root"),
    lambda info: setattr(info, "pax_headers", {"path": "../../outside"}),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("which", [0, 1, 3])
@pytest.mark.parametrize("change", range(len(LINKS)))
def test_names_links_and_other_members_are_refused(simulator: Simulator, bundle: Path, change: int, which: int, form: int) -> None:
    """Members are compared with what must stand there, never followed."""
    with tarfile.open(bundle) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(bundle, "w", format=form) as made:
        for place, (member, data) in enumerate(members):
            if place == which:
                LINKS[change](member)
            made.addfile(member, io.BytesIO(data) if member.isreg() else None)
    outside = set(bundle.parent.rglob("*"))
    with pytest.raises(VerificationFailed):
        read_whole(bundle, trust_of(simulator))
    assert set(bundle.parent.rglob("*")) == outside


def wrong_bundles(simulator: Simulator, folder: Path) -> dict[str, Path]:
    """Bundles that are whole in themselves, and not for this device."""
    mine, more = simulator.add_adder(1), simulator.add_adder(2)
    theirs = simulator.add_package(b"graph", account="evil")
    forged = simulator.sign({**mine.parsed, "version": 9}, key=Key())
    names = {COLLECTION: [mine]}
    made = {
        "signed by nobody known": write(simulator, folder / "a", statement(simulator, names, key=Key()), mine),
        "signed by the packager": write(simulator, folder / "b", statement(simulator, names, key=simulator.package_key), mine),
        "of another account": write(simulator, folder / "c", statement(simulator, names, account="evil"), mine),
        "package of another account": write(simulator, folder / "d", statement(simulator, {COLLECTION: [theirs]}), theirs),
        "package signed by nobody": write(simulator, folder / "e", statement(simulator, {COLLECTION: [forged]}), forged),
        "another package": write(simulator, folder / "f", statement(simulator, names), more),
        "a package too many": write(simulator, folder / "g", statement(simulator, names), mine, more),
        "a package too few": write(simulator, folder / "h", statement(simulator, {COLLECTION: [mine, more]}), mine),
        "the other order": write(simulator, folder / "i", statement(simulator, {COLLECTION: [mine, more]}), more, mine),
        "another type": write(simulator, folder / "j", statement(simulator, names, type="latebind-assignment-v1"), mine),
        "no counter": write(simulator, folder / "k", statement(simulator, names, counter=None), mine),
        "no time": write(simulator, folder / "l", statement(simulator, names, issued_at="soon"), mine),
        "no names": write(simulator, folder / "m", statement(simulator, names, names=[])),
        "no packages": write(simulator, folder / "n", statement(simulator, names, names=[{"name": "x", "revision": 1, "packages": []}])),
        "a name twice": write(simulator, folder / "o", statement(simulator, names, names=[_entry(mine)] * 2), mine),
        "a path as digest": write(
            simulator, folder / "p", statement(simulator, names, names=[{**_entry(mine), "packages": ["../../outside"]}]), mine
        ),
        "an assignment": write(
            simulator,
            folder / "q",
            simulator.assignment_key.envelope("application/vnd.latebind.assignment+json", json.dumps({"account": ACCOUNT}).encode()),
            mine,
        ),
    }
    (folder / "r").write_bytes(b"PK\x03\x04 a zip")
    (folder / "s").write_bytes(b"")
    return {**made, "no tar": folder / "r", "empty": folder / "s"}


def _entry(package: Package) -> dict[str, Any]:
    return {"name": COLLECTION, "revision": 1, "packages": [package.digest]}


def test_what_the_account_did_not_sign_for_this_is_refused(simulator: Simulator, make_agent: MakeAgent, tmp_path: Path) -> None:
    agent = make_agent(trust=trust_of(simulator), enrolment_key=None)
    before = agent.updater(COLLECTION).state
    for what, path in wrong_bundles(simulator, tmp_path).items():
        outcome = agent.take_bundle(COLLECTION, path)
        assert outcome.result is PollResult.FAILED and isinstance(outcome.error, VerificationFailed), what
        assert agent.updater(COLLECTION).state == before, what
    assert agent.current(COLLECTION) is None


def test_sizes_are_bounded_before_anything_is_read(simulator: Simulator, bundle: Path) -> None:
    """A header that promises gigabytes of statement, manifest or signature is refused by its number."""
    data = bundle.read_bytes()
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    for member in members[:3]:
        info = tarfile.TarInfo(member.name)
        info.size, info.mode = 6 << 30, 0o644
        block = info.tobuf(tarfile.USTAR_FORMAT)[:512]
        start = member.offset
        bundle.write_bytes(data[:start] + block + data[start + 512 :])
        os.truncate(bundle, (6 << 30) + (1 << 20))  # sparse: the bytes are there to be read
        with pytest.raises(VerificationFailed):
            read_whole(bundle, trust_of(simulator))


def test_keys_never_come_from_the_bundle(simulator: Simulator, bundle: Path, make_manager: MakeManager, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed) as caught:
        make_manager(server=None, bundle=bundle).open_blocking(CONFIG)
    assert caught.value.code == "TRUST_INVALID"
    for wrong in ({}, {"account": ACCOUNT}, {**keys_of(simulator), "package_keys": []}):
        with pytest.raises(VerificationFailed):
            make_manager(server=None, bundle=bundle, trust=wrong).open_blocking(CONFIG)
    with pytest.raises(VerificationFailed):  # the keys are another account's, so they say nothing of this one
        make_manager(server=None, bundle=bundle, trust=keys_of(simulator, "other")).open_blocking(CONFIG)


def test_an_enrolled_device_trusts_what_it_pinned(simulator: Simulator, bundle: Path, make_agent: MakeAgent) -> None:
    simulator.assign(simulator.add_adder(3))
    agent = make_agent()
    handle = agent.open(COLLECTION)
    handle.run(X)
    # The assignment came after the bundle, so the bundle is the older one.
    assert agent.take_bundle(COLLECTION, bundle).result is PollResult.UNCHANGED
    newer = write(simulator, bundle.with_name("newer"), statement(simulator, {COLLECTION: [one := simulator.add_adder(1)]}), one)
    assert agent.take_bundle(COLLECTION, newer).result is PollResult.SWITCHED
    assert handle.run(X).info.version == 1


def test_a_device_that_finds_a_server_later_enrols_and_keeps_its_keys(
    simulator: Simulator, bundle: Path, make_manager: MakeManager, make_agent: MakeAgent
) -> None:
    manager = make_manager(server=None, bundle=bundle, trust=keys_of(simulator), enrolment_key=None)
    manager.open_blocking(CONFIG).run(X)
    manager.close()
    simulator.assign(simulator.add_adder(2))
    agent = make_agent(enrolment_key=None)
    outcome = agent.poll_once(COLLECTION)
    assert isinstance(outcome.error, NotEnrolled)  # keys alone are no enrolment
    agent.close(send=False)
    agent = make_agent()
    assert agent.poll_once(COLLECTION).result is PollResult.SWITCHED
    agent.flush()
    agent.send()
    assert "running" in simulator.states()  # of the time before, too
    agent.close(send=False)
    # A server that signs with other keys than the app brought is not believed, though it enrols the device.
    simulator.assignment_key = Key()
    simulator.assign(simulator.add_adder(5))
    agent = make_agent()
    outcome = agent.poll_once(COLLECTION)
    assert isinstance(outcome.error, VerificationFailed) and outcome.error.code == "SIGNATURE_UNTRUSTED"
    assert agent.open(COLLECTION).run(X).info.version == 2


def test_a_bundle_that_cannot_be_used_stops_nothing_that_is_installed(
    simulator: Simulator, bundle: Path, make_manager: MakeManager
) -> None:
    manager = make_manager(server=None, bundle=bundle, trust=keys_of(simulator))
    manager.open_blocking(CONFIG).run(X)
    manager.close()
    bundle.write_bytes(b"rubbish")
    again = make_manager(server=None, bundle=bundle, trust=keys_of(simulator), options=quick())
    assert again.open_blocking(CONFIG).run(X).info.version == 1


def test_what_fails_its_golden_test_is_not_used(simulator: Simulator, make_manager: MakeManager, tmp_path: Path) -> None:
    package = simulator.add_adder(1, golden_constant=7.0)
    path = write(simulator, tmp_path / "b", statement(simulator, {COLLECTION: [package]}), package)
    with pytest.raises(DeviceError) as caught:
        make_manager(server=None, bundle=path, trust=keys_of(simulator)).open_blocking(CONFIG)
    assert caught.value.code == "GOLDEN_TEST_FAILED"


def test_the_reference_of_the_format_is_complete() -> None:
    """docs/interop.md names every member and field that is written here by hand."""
    text = (Path(__file__).parents[3] / "docs" / "interop.md").read_text()
    assert all(word in text for word in ("bundle.json", "latebind-bundle-v1", "counter", "issued_at", "names", "revision", BUNDLE_TYPE))
