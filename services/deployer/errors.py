"""What can be wrong with a request to the deployer. docs/errors.md explains each code."""

from __future__ import annotations

from kit.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable


class CollectionNotFound(NotFound):
    """No such collection in this account, or for a device: none that was published."""

    code = "COLLECTION_NOT_FOUND"


class RevisionNotFound(NotFound):
    """The collection has no revision with this number."""

    code = "REVISION_NOT_FOUND"


class DeviceNotFound(NotFound):
    """No device with this install id has asked yet."""

    code = "DEVICE_NOT_FOUND"


class DecisionNotFound(NotFound):
    """No decision with this id."""

    code = "DECISION_NOT_FOUND"


class RulesInvalid(Invalid):
    """The rules document is wrong. `errors` lists field, code and detail of the first hundred problems, `total` counts all."""

    code = "RULES_INVALID"


class VersionNotReady(Conflict):
    """The rules serve something that is not there (yet). `errors` lists each. Retrying helps when it is being packaged."""

    code = "VERSION_NOT_READY"
    retry_after_s = 2


class NothingPublished(Conflict):
    """The collection has no revision yet: publish its draft first."""

    code = "NOTHING_PUBLISHED"


class InstallMismatch(Forbidden):
    """The device context names another install than the token."""

    code = "INSTALL_MISMATCH"


class ContextInvalid(Invalid):
    """The device context cannot be read."""

    code = "CONTEXT_INVALID"


class NonceInvalid(Invalid):
    """`Latebind-Nonce` is missing or not 16 to 64 printable ASCII characters."""

    code = "NONCE_INVALID"


class ReportInvalid(Invalid):
    """The update states of a device cannot be read."""

    code = "REPORT_INVALID"


class NoMatch(NotFound):
    """No rule serves this device and the collection has no default."""

    code = "NO_MATCH"


class NoCompatiblePackage(Conflict):
    """Something matched, but nothing of it can run on this device. `packages` says for each why."""

    code = "NO_COMPATIBLE_PACKAGE"


class Starting(Unavailable):
    """The rules are still being loaded; ask again in a moment."""

    code = "STARTING"
    retry_after_s = 1


class Outdated(Unavailable):
    """Newer rules are known than this process has, and it cannot get them now. Another one may; an older answer is never given."""

    code = "RULES_OUTDATED"
    retry_after_s = 1
