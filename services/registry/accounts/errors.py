"""What can be wrong with accounts and keys."""

from __future__ import annotations

from kit.errors import Conflict, NotFound, Unauthorized


class AccountExists(Conflict):
    """There is an account of this name."""

    code = "ACCOUNT_EXISTS"


class AccountNotFound(NotFound):
    """No such account, or not one that this caller may know of."""

    code = "ACCOUNT_NOT_FOUND"


class KeyNotFound(NotFound):
    """No such key in this account."""

    code = "KEY_NOT_FOUND"


class TooManyKeys(Conflict):
    """The account has as many keys in use as it may have."""

    code = "TOO_MANY_KEYS"


class CredentialInvalid(Unauthorized):
    """Not a credential that this server issued."""

    code = "CREDENTIAL_INVALID"


class CredentialExpired(Unauthorized):
    """The key was good until its expiry."""

    code = "CREDENTIAL_EXPIRED"


class CredentialRevoked(Unauthorized):
    """The key was revoked."""

    code = "CREDENTIAL_REVOKED"
