"""Fetches a registered model from an MLflow server over its REST API. MLflow itself is not needed, and no pickle is ever loaded.

Routes (MLflow 3, the same since 2.4): `/api/2.0/mlflow/model-versions/get`, `/api/2.0/mlflow/registered-models/alias`, and
`/model-versions/get-artifact`, which serves a version's files whatever store they are in.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import yaml

from latebind._declaration import ImportFailed, ImportRefused
from latebind._files import disk_errors
from latebind._modelfiles import is_plain, read_model
from latebind._prefill import Fetched, data_names
from latebind._transport import Transport

MAX_FILE_BYTES = 16 << 30
MAX_MLMODEL_BYTES = 1 << 20

Progress = Callable[[str, int], None]

#: How to get from another flavour to ONNX.
_WAYS_OUT = {
    "sklearn": "convert it with skl2onnx and log it with mlflow.onnx.log_model",
    "xgboost": "convert it with onnxmltools and log it with mlflow.onnx.log_model",
    "lightgbm": "convert it with onnxmltools and log it with mlflow.onnx.log_model",
    "pytorch": "export it with torch.onnx.export and log it with mlflow.onnx.log_model",
    "tensorflow": "download it (mlflow artifacts download) and push its SavedModel, or convert it with tf2onnx",
    "keras": "export it as SavedModel (model.export) and push that, or convert it with tf2onnx",
}


def fetch(address: str, folder: Path, *, transport: Transport, progress: Progress) -> Fetched:
    """Fetch `mlflow://host[:port]/models/name/version-or-alias` into a folder.

    `mlflow://` is https, http on this machine itself; `mlflow+http://` and `mlflow+https://` say it. Credentials are MLflow's own:
    MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Raises ImportRefused, ImportFailed,
    ServerUnreachable, DiskFull.
    """
    server = _Server(address, transport)
    version = server.version()
    number = str(version.get("version"))
    mlmodel_file = folder / "MLmodel"
    server.download(number, "MLmodel", mlmodel_file, MAX_MLMODEL_BYTES, lambda done: progress("MLmodel", done))
    mlmodel = read_mlmodel(mlmodel_file)
    path = onnx_path(mlmodel)
    graph = folder / path.rpartition("/")[2]
    server.download(number, path, graph, MAX_FILE_BYTES, lambda done: progress(graph.name, done))
    facts = read_model(graph)
    data = []
    for name in _plain_data(facts):
        beside = f"{path.rpartition('/')[0]}/{name}".removeprefix("/")
        server.download(number, beside, folder / name, MAX_FILE_BYTES, lambda done, name=name: progress(name, done))  # type: ignore[misc]
        data.append(folder / name)
    details = {"model": server.name, "version": number, "run_id": str(version.get("run_id") or "")}
    origin = f"{server.root}/models/{server.name}/{number}"
    description = str(version.get("description") or "")
    if description:
        facts.metadata.setdefault("description", description)
    return Fetched(graph, origin, server.name, data, facts, mlmodel=mlmodel, details=details)


def read_mlmodel(path: Path) -> Mapping[str, Any]:
    """A parsed MLmodel file. Raises ImportRefused."""
    try:
        with path.open("rb") as file:
            parsed = yaml.safe_load(file.read(MAX_MLMODEL_BYTES))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ImportRefused("its MLmodel is no YAML: is this an MLflow model?") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("flavors"), dict):
        raise ImportRefused("its MLmodel names no flavors: is this an MLflow model?")
    return parsed


def onnx_path(mlmodel: Mapping[str, Any]) -> str:
    """Where the ONNX file is, inside the model. Raises ImportRefused for models of other flavors."""
    flavors = mlmodel["flavors"]
    flavor = flavors.get("onnx")
    if not isinstance(flavor, Mapping):
        named = [str(name) for name in flavors if name != "python_function"] or ["python_function"]
        way = next((_WAYS_OUT[name] for name in named if name in _WAYS_OUT), "export it as ONNX and log it with mlflow.onnx.log_model")
        raise ImportRefused(f"the model has no onnx flavor, but {', '.join(named)[:200]}, whose files run code when they are loaded: {way}")
    data = str(flavor.get("data", "model.onnx"))
    if not all(is_plain(part) for part in data.split("/")):
        raise ImportRefused(f"its MLmodel points at {data[:100]!r}, which is no path inside the model")
    return data


def _plain_data(facts: Any) -> list[str]:
    try:
        return data_names(facts)
    except ValueError as error:
        raise ImportRefused(str(error)) from error


class _Server:
    """One registered model on one server."""

    def __init__(self, address: str, transport: Transport) -> None:
        parts = urlsplit(address)
        path = [unquote(part) for part in parts.path.split("/") if part]
        if len(path) != 3 or path[0] != "models" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ImportRefused(f"{address!r} is no model: write mlflow://host/models/NAME/VERSION-OR-ALIAS")
        scheme = parts.scheme.partition("+")[2] or ("http" if parts.hostname in {"localhost", "127.0.0.1", "::1"} else "https")
        self.root = f"{scheme}://{parts.netloc}"
        self.name, self._wanted = path[1], path[2]
        self._transport = transport
        self._headers = _credentials()

    def version(self) -> Mapping[str, Any]:
        """The model version that was named, by number or by alias."""
        if self._wanted.isdigit():
            return self._ask("model-versions/get", name=self.name, version=self._wanted)
        return self._ask("registered-models/alias", name=self.name, alias=self._wanted)

    def download(self, version: str, path: str, to: Path, most: int, progress: Callable[[int], None]) -> None:
        """One file of the version."""
        url = f"{self.root}/model-versions/get-artifact?{urlencode({'name': self.name, 'version': version, 'path': path})}"
        received = 0
        with self._transport.stream("GET", url, headers=self._headers) as stream, disk_errors(to), to.open("xb") as file:
            if stream.status != 200:
                raise ImportFailed(f"MLflow answered {stream.status} where {path} was due")
            for piece in stream.pieces():
                received += len(piece)
                if received > most:
                    raise ImportRefused(f"{path} is larger than {most} bytes")
                file.write(piece)
                progress(received)
            expected = stream.headers.get("content-length")
        if expected is not None and expected != str(received):
            raise ImportFailed(f"{path} broke off after {received} of {expected} bytes: repeat the command")

    def _ask(self, route: str, **params: str) -> Mapping[str, Any]:
        answer = self._transport.send("GET", f"{self.root}/api/2.0/mlflow/{route}?{urlencode(params)}", headers=self._headers)
        body = answer.json() if answer.body else {}
        version = body.get("model_version") if isinstance(body, Mapping) else None
        if answer.status != 200 or not isinstance(version, Mapping):
            said = body.get("message") if isinstance(body, Mapping) else None
            raise ImportFailed(f"MLflow answered {answer.status}: {str(said or 'no such model')[:300]}")
        return version


def _credentials() -> dict[str, str]:
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
