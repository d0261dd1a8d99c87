"""Fetches a model from the Hugging Face Hub through huggingface-hub (extra `hf`): one pinned commit, and only the files that are needed.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are that library's own and mean what they mean there. Every file is held against the
digest that the Hub (or its cache) names: SHA-256 of large files, the git blob id of others. Nothing is ever unpickled or imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from latebind._declaration import ImportFailed, ImportRefused
from latebind._files import READ_SIZE
from latebind._modelfiles import read_model
from latebind._prefill import MAX_CARD, Fetched, data_names

Progress = Callable[[str, int], None]
T = TypeVar("T")

_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
#: What loads code, or has no graph: the file's ending and the way out.
_REFUSED = {
    ".bin": "weights in a pickle; export the model with optimum-cli export onnx",
    ".pt": "a pickle; export the model with torch.onnx.export",
    ".pth": "a pickle; export the model with torch.onnx.export",
    ".ckpt": "a pickle; export the model with torch.onnx.export",
    ".pkl": "a pickle; export the model with skl2onnx",
    ".joblib": "a pickle; export the model with skl2onnx",
    ".h5": "Keras HDF5, which runs code when it is loaded; export a SavedModel or ONNX",
    ".keras": "a Keras archive, which runs code when it is loaded; export a SavedModel or ONNX",
    ".safetensors": "weights without a graph; export the model with optimum-cli export onnx",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the pinned commit: its digest as `sha256:…` or `git:…`, and its size (None: not known)."""

    digest: str
    size: int | None
    path: Path | None = None  # in the cache, when the Hub is out of reach


def fetch(address: str, *, wanted: str | None, progress: Progress) -> Fetched:
    """Fetch `hf://owner/name@revision`. `wanted` names the model file when there are several.

    Raises ImportRefused (`IMPORT_REFUSED`, `EXTRA_MISSING`), ImportFailed.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ImportRefused(f"{address!r} is no model: write hf://OWNER/NAME@REVISION")
    if match["revision"] is None:
        raise ImportRefused(f"{address} names no revision: pin one, such as {address}@main (its commit is recorded) or a commit")
    try:
        import huggingface_hub.constants  # noqa: PLC0415 - an extra, whose parts are loaded when they are named
        import huggingface_hub.utils  # noqa: PLC0415
    except ImportError as error:
        raise ImportRefused("hf:// needs huggingface-hub: pip install 'latebind[hf]'", code="EXTRA_MISSING") from error
    hub = _Hub(huggingface_hub, match["repo"], match["revision"])
    path = _choose(list(hub.files), wanted, hub)
    graph = hub.download(path, progress)
    facts = read_model(graph)
    data = []
    try:
        named = data_names(facts)
    except ValueError as error:
        raise ImportRefused(str(error)) from error
    for name in named:
        beside = f"{path.rpartition('/')[0]}/{name}".removeprefix("/")
        if beside not in hub.files:
            raise ImportRefused(f"{path} keeps tensors in {name}, which is not in the repository")
        data.append(hub.download(beside, progress))
    card = hub.download("README.md", progress) if "README.md" in hub.files else None
    text = "" if card is None else card.read_bytes()[:MAX_CARD].decode("utf-8", "replace")
    details = {"repository": hub.repo, "commit": hub.commit, "file": path}
    return Fetched(graph, f"hf://{hub.repo}@{hub.commit}", hub.repo, data, facts, card=text, details=details)


def _choose(files: list[str], wanted: str | None, hub: _Hub) -> str:
    if wanted is not None:
        if wanted not in files:
            raise ImportRefused(f"{hub.repo} has no file {wanted!r}")
        ending = Path(wanted).suffix
        if ending not in {".onnx", ".tflite"}:
            raise ImportRefused(f"{wanted} is {_REFUSED.get(ending, 'no ONNX and no TFLite file')}")
        return wanted
    models = sorted(name for name in files if name.endswith((".onnx", ".tflite")))
    if len(models) == 1:
        return models[0]
    if models:
        raise ImportRefused(f"{hub.repo} has several models ({', '.join(models[:20])}): say which with --file")
    others = sorted({reason for name in files if (reason := _REFUSED.get(Path(name).suffix))})
    why = f"; what it has is {'; '.join(others)}" if others else ""
    raise ImportRefused(f"{hub.repo} has no ONNX and no TFLite file{why}")


class _Hub:
    """One commit of one repository, from the Hub or, offline, from its cache."""

    def __init__(self, library: Any, repo: str, revision: str) -> None:
        self._library = library
        self.repo = repo
        library.utils.disable_progress_bars()  # the command line has one of its own
        offline = library.constants.is_offline_mode()
        self.commit, self.files = self._cached(revision) if offline else self._asked(revision)

    def download(self, path: str, progress: Progress) -> Path:
        """A file of the commit, in the library's cache, checked against its digest."""
        file = self.files[path]
        found = file.path
        if found is None:
            progress(path, 0)
            found = Path(self._call(self._library.hf_hub_download, self.repo, path, revision=self.commit))
        if not _is(found, file):
            raise ImportFailed(f"{path} is not the file that the Hub names: remove it from the cache and repeat")
        progress(path, found.stat().st_size)
        return found

    def _asked(self, revision: str) -> tuple[str, Mapping[str, _File]]:
        info = self._call(self._library.HfApi().model_info, self.repo, revision=revision, files_metadata=True)
        files = {}
        for one in info.siblings or []:
            digest = f"sha256:{one.lfs.sha256}" if one.lfs is not None else f"git:{one.blob_id}"
            files[one.rfilename] = _File(digest, one.lfs.size if one.lfs is not None else one.size)
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise ImportFailed(f"the Hub names no commit for {self.repo}@{revision}")
        return info.sha, files

    def _cached(self, revision: str) -> tuple[str, Mapping[str, _File]]:
        """What the cache has of the revision. A file's blob there is named by its digest."""
        for repo in self._call(self._library.scan_cache_dir).repos:
            if repo.repo_id != self.repo or repo.repo_type != "model":
                continue
            for one in repo.revisions:
                if revision == one.commit_hash or revision in one.refs:
                    files = {}
                    for file in one.files:
                        kind = "sha256" if len(file.blob_path.name) == 64 else "git"
                        name = file.file_path.relative_to(one.snapshot_path).as_posix()
                        files[name] = _File(f"{kind}:{file.blob_path.name}", None, file.file_path)
                    return one.commit_hash, files
        raise ImportFailed(f"{self.repo}@{revision} is not in the cache, which HF_HUB_OFFLINE leaves: name the commit that came in before")

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Vendor errors stop here."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            if isinstance(error, LookupError | TypeError | AttributeError):
                raise
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise ImportFailed(f"{self.repo}: {text}") from error


def _is(path: Path, file: _File) -> bool:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return False
    kind, _, expected = file.digest.partition(":")
    # A git blob id is a SHA-1 by definition (git-hash-object); it is what the Hub has for small files.
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as opened:
        while piece := opened.read(READ_SIZE):
            digest.update(piece)
    return digest.hexdigest() == expected
