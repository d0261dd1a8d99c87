"""What can be wrong with models and aliases."""

from __future__ import annotations

from kit.errors import Conflict, NotFound


class ModelNotFound(NotFound):
    """No such model in this account."""

    code = "MODEL_NOT_FOUND"


class ModelExists(Conflict):
    """The account has a model of this id."""

    code = "MODEL_EXISTS"


class AliasNotFound(NotFound):
    """The model has no alias of this name."""

    code = "ALIAS_NOT_FOUND"


class VersionNotReady(Conflict):
    """The version is in another state than `ready`; `state` says which."""

    code = "VERSION_NOT_READY"
