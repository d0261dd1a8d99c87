"""Latebind: run the model that the server binds to this device, and manage what it binds.

The public names are the list below. They are loaded when first used, so that `import latebind` costs next to nothing: numpy, the HTTP
client, ReactiveX and the engines come in with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latebind.client import Client as Client
    from latebind.device.agent import DeviceAgent as DeviceAgent
    from latebind.device.config import ModelConfig as ModelConfig
    from latebind.device.handle import Handle as Handle
    from latebind.device.handle import Update as Update
    from latebind.device.info import Inference as Inference
    from latebind.device.info import ModelInfo as ModelInfo
    from latebind.device.info import Tensor as Tensor
    from latebind.device.manager import Manager as Manager
    from latebind.errors import DeviceError as DeviceError
    from latebind.errors import LatebindError as LatebindError
    from latebind.errors import ServerError as ServerError

_WHERE = {
    "Client": "latebind.client",
    "DeviceAgent": "latebind.device.agent",
    "DeviceError": "latebind.errors",
    "Handle": "latebind.device.handle",
    "Inference": "latebind.device.info",
    "LatebindError": "latebind.errors",
    "Manager": "latebind.device.manager",
    "ModelConfig": "latebind.device.config",
    "ModelInfo": "latebind.device.info",
    "ServerError": "latebind.errors",
    "Tensor": "latebind.device.info",
    "Update": "latebind.device.handle",
}

__version__ = "0.1.0"

__all__ = [
    "Client",
    "DeviceAgent",
    "DeviceError",
    "Handle",
    "Inference",
    "LatebindError",
    "Manager",
    "ModelConfig",
    "ModelInfo",
    "ServerError",
    "Tensor",
    "Update",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'latebind' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
