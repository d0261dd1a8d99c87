"""What can go wrong while packaging. Each reason has a heading in docs/packaging.md; a test compares.

`ModelRejected` ends a job as failed; it is never an HTTP error. The HTTP errors of the job routes are the `Problem` classes below.
"""

from __future__ import annotations

from enum import StrEnum

from kit.errors import Conflict, NotFound


class Reason(StrEnum):
    """Stable codes of a failed job. The first group names faults of the upload, the second what happened to the work on it."""

    DECLARATION_INVALID = "DECLARATION_INVALID"
    FILE_MISSING = "FILE_MISSING"
    FILE_MISMATCH = "FILE_MISMATCH"
    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"
    ARCHIVE_INVALID = "ARCHIVE_INVALID"
    ARCHIVE_REFUSED = "ARCHIVE_REFUSED"
    ARCHIVE_TOO_LARGE = "ARCHIVE_TOO_LARGE"
    MODEL_NOT_RECOGNISED = "MODEL_NOT_RECOGNISED"
    MODEL_FORMAT_REFUSED = "MODEL_FORMAT_REFUSED"
    MODEL_TRUNCATED = "MODEL_TRUNCATED"
    MODEL_MALFORMED = "MODEL_MALFORMED"
    MODEL_TOO_COMPLEX = "MODEL_TOO_COMPLEX"
    EXTERNAL_DATA_OUTSIDE = "EXTERNAL_DATA_OUTSIDE"
    EXTERNAL_DATA_MISSING = "EXTERNAL_DATA_MISSING"
    OPERATOR_NOT_ALLOWED = "OPERATOR_NOT_ALLOWED"
    TYPE_NOT_ALLOWED = "TYPE_NOT_ALLOWED"
    GRAPH_NODES_NEEDED = "GRAPH_NODES_NEEDED"
    ENGINE_TOO_OLD = "ENGINE_TOO_OLD"
    TENSOR_NOT_SUPPORTED = "TENSOR_NOT_SUPPORTED"
    TENSOR_TOO_LARGE = "TENSOR_TOO_LARGE"
    INPUT_MISMATCH = "INPUT_MISMATCH"
    OUTPUT_MISMATCH = "OUTPUT_MISMATCH"
    VARIANTS_DISAGREE = "VARIANTS_DISAGREE"
    MODEL_LOAD_FAILED = "MODEL_LOAD_FAILED"
    MODEL_RUN_FAILED = "MODEL_RUN_FAILED"
    MODEL_OUTPUT_NOT_FINITE = "MODEL_OUTPUT_NOT_FINITE"
    MODEL_NOT_DETERMINISTIC = "MODEL_NOT_DETERMINISTIC"
    PARITY_TOO_LOW = "PARITY_TOO_LOW"
    ACCURACY_TOO_LOW = "ACCURACY_TOO_LOW"
    SAMPLES_INVALID = "SAMPLES_INVALID"
    VARIANTS_FAILED = "VARIANTS_FAILED"
    ENGINE_NOT_INSTALLED = "ENGINE_NOT_INSTALLED"

    CONVERSION_FAILED = "CONVERSION_FAILED"
    CONVERTER_UNAVAILABLE = "CONVERTER_UNAVAILABLE"
    CHILD_TIMEOUT = "CHILD_TIMEOUT"
    CHILD_KILLED = "CHILD_KILLED"
    CHILD_OUT_OF_MEMORY = "CHILD_OUT_OF_MEMORY"
    CHILD_OUTPUT_TOO_LARGE = "CHILD_OUTPUT_TOO_LARGE"
    CHILD_ANSWER_INVALID = "CHILD_ANSWER_INVALID"
    QUEUE_FULL = "QUEUE_FULL"
    ACCOUNT_QUEUE_FULL = "ACCOUNT_QUEUE_FULL"
    JOB_ABANDONED = "JOB_ABANDONED"
    JOB_CANCELLED = "JOB_CANCELLED"


class ModelRejected(Exception):
    """The version cannot be packaged. `detail` is for the model's owner: what was found and what to do; no server paths.

    `report` is what was found about its variants until then, as JSON; empty when there is nothing to say.
    """

    def __init__(self, reason: Reason, detail: str, report: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.report = report


class JobNotFound(NotFound):
    """No such job in this account."""

    code = "JOB_NOT_FOUND"


class JobFinished(Conflict):
    """The job has ended already, so it cannot be cancelled."""

    code = "JOB_FINISHED"
