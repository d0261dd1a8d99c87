"""What can go wrong when a device proves who it is."""

from __future__ import annotations

from kit.errors import Conflict, Forbidden, Unauthorized, Unavailable


class ChallengeInvalid(Unauthorized):
    """Not a nonce of this server, one that has expired, or one that was used: ask for a new challenge."""

    code = "CHALLENGE_INVALID"


class ProofInvalid(Unauthorized):
    """The signature was not made by the key that the device enrols with."""

    code = "PROOF_INVALID"


class InstallUnknown(Unauthorized):
    """No such install in the account, or not proven by its key: both answer alike."""

    code = "INSTALL_UNKNOWN"


class EnrolmentKeyInvalid(Unauthorized):
    """Not an enrolment key of this account."""

    code = "ENROLMENT_KEY_INVALID"


class EnrolmentKeyExpired(Unauthorized):
    """The enrolment key was good until its expiry, or was revoked."""

    code = "ENROLMENT_KEY_EXPIRED"


class EnrolmentQuotaExhausted(Forbidden):
    """As many installs as the enrolment key allows have enrolled with it."""

    code = "ENROLMENT_QUOTA_EXHAUSTED"


class InstallAlreadyEnrolled(Conflict):
    """The install id is enrolled with another public key."""

    code = "INSTALL_ALREADY_ENROLLED"


class AccountNotReady(Unavailable):
    """The account's signing keys have not arrived yet; they do so within moments of its creation."""

    code = "ACCOUNT_NOT_READY"
    retry_after_s = 1
