"""What can be wrong with versions and packages."""

from __future__ import annotations

from kit.errors import Conflict, Invalid, NotFound


class VersionNotFound(NotFound):
    """The model has no such version."""

    code = "VERSION_NOT_FOUND"


class PackageNotFound(NotFound):
    """No such package, or no such file in it, in this account."""

    code = "PACKAGE_NOT_FOUND"


class DeclarationInvalid(Invalid):
    """The declaration contradicts itself or the rules; `errors` lists each place."""

    code = "DECLARATION_INVALID"


class FileNotUploaded(Invalid):
    """A file that the declaration names is not among the account's uploads, or has another size; `errors` lists each."""

    code = "FILE_NOT_UPLOADED"


class VersionNotDraft(Conflict):
    """Only drafts change; a committed version never does. `state` says what it is."""

    code = "VERSION_NOT_DRAFT"


class VersionNotArchivable(Conflict):
    """A version that is being packaged cannot be archived."""

    code = "VERSION_NOT_ARCHIVABLE"


class VersionInUse(Conflict):
    """Aliases point at the version; `aliases` names them. `force` removes them too."""

    code = "VERSION_IN_USE"


class ContractBroken(Conflict):
    """The version breaks a promise of the model's earlier ones: `breaches` lists each, `collections` those that serve the model.

    `parameters` has the breaches of parameters once more, with old and new type.
    """


class ParameterContractBroken(ContractBroken):
    """Among the broken promises are names or types of parameters."""

    code = "PARAMETER_CONTRACT_BROKEN"


class TensorContractBroken(ContractBroken):
    """Inputs or outputs differ in name, dtype, rank or named dimensions; all parameters are as they were."""

    code = "TENSOR_CONTRACT_BROKEN"
