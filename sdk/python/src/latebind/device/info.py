"""What a handle tells about the model it runs, and the result of one run: plain values, and the package's files when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from latebind.device.cache import InstalledPackage
from latebind.device.engines import Array
from latebind.device.manifest import TensorSpec
from latebind.errors import UnknownParameter

Tensor = TensorSpec


@dataclass(frozen=True)
class ModelInfo:
    """The model that a result came from. It never changes; after a switch the handle has another one.

    `package` is the digest of the package. `params` holds the parsed values by name, and for a file parameter the file's path in the
    package; `param_types` the declared types. `files` are the package's auxiliary paths.
    """

    account: str
    collection: str
    model_id: str
    version: int
    variant: str
    package: str
    engine: str
    engine_version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    params: Mapping[str, Any]
    param_types: Mapping[str, str]
    files: tuple[str, ...]
    _package: InstalledPackage = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        package: InstalledPackage,
        *,
        collection: str,
        engine_version: str,
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
    ) -> ModelInfo:
        """The info of a loaded package. `inputs` and `outputs` are the loaded model's, which may know more of a shape than the manifest."""
        manifest = package.manifest
        return cls(
            account=manifest.account,
            collection=collection,
            model_id=manifest.model_id,
            version=manifest.version,
            variant=manifest.variant,
            package=package.digest,
            engine=manifest.engine,
            engine_version=engine_version,
            inputs=inputs,
            outputs=outputs,
            params={name: parameter.value for name, parameter in manifest.params.items()},
            param_types={name: parameter.type for name, parameter in manifest.params.items()},
            files=tuple(file.path for file in manifest.files if file.role == "auxiliary"),
            _package=package,
        )

    @cached_property
    def params_json(self) -> str:
        """`params` as a JSON object."""
        return json.dumps(dict(self.params), ensure_ascii=False)

    def load_hyper_param_file(self, name: str) -> bytes:
        """The content of a file parameter, or of the auxiliary file at this path of the package.

        Raises UnknownParameter; CacheDamaged when the file is no longer the one that was installed.
        """
        path = self.params[name] if self.param_types.get(name) == "file" else name if name in self.files else None
        file = None if path is None else self._package.manifest.file(path)
        if file is None:
            raise UnknownParameter(f"{self.model_id} version {self.version} has no file parameter and no auxiliary file {name!r}")
        return self._package.read_verified(file)


class Inference(dict[str, Array]):
    """The result of one run: output arrays by name, with the `info` of the model that made them.

    Decode with `info.params` of the result itself: then the parameters always fit the outputs, also while the handle switches to another
    package.
    `latency_us` is the time of the run in microseconds.
    """

    __slots__ = ("info", "latency_us")

    info: ModelInfo
    latency_us: int
