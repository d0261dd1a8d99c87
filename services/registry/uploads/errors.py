"""What can go wrong with an upload."""

from __future__ import annotations

from kit.errors import Conflict, Invalid, NotFound, Problem, TooLarge


class UploadNotFound(NotFound):
    """No such upload in this account, or it has expired."""

    code = "UPLOAD_NOT_FOUND"


class UploadTooLarge(TooLarge):
    """The file is larger than this server takes."""

    code = "UPLOAD_TOO_LARGE"


class UploadPartTooLarge(TooLarge):
    """The part is larger than `part_size_max`, or reaches beyond the announced end of the file."""

    code = "UPLOAD_PART_TOO_LARGE"


class UploadHeaderInvalid(Invalid):
    """`Upload-Offset` or `Content-Digest` is missing or malformed."""

    code = "UPLOAD_HEADER_INVALID"


class UploadOffsetMismatch(Conflict):
    """The part does not begin where the upload stands; `offset` says where that is."""

    code = "UPLOAD_OFFSET_MISMATCH"


class UploadIncomplete(Conflict):
    """Bytes are missing; `offset` says where to go on."""

    code = "UPLOAD_INCOMPLETE"


class UploadComplete(Conflict):
    """The upload is complete already; `sha256` names the file."""

    code = "UPLOAD_COMPLETE"


class UploadPartMismatch(Problem):
    """The bytes that arrived are not those of `Content-Digest`. Nothing was kept; send the part again."""

    status = 422
    code = "UPLOAD_PART_MISMATCH"


class UploadDigestMismatch(Problem):
    """The whole file has another SHA-256 (`sha256`) than was claimed. The upload stays as it is."""

    status = 422
    code = "UPLOAD_DIGEST_MISMATCH"


class TooManyUploads(Conflict):
    """The account has as many unfinished uploads as it may have."""

    code = "TOO_MANY_UPLOADS"
