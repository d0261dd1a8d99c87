"""Every topic of the event log (docs/topics.md says what each tells), for what looks at all of them: `migrate` and `doctor`."""

from __future__ import annotations

from services.deployer import events as deployer_events
from services.registry import events as registry_events
from services.registry.accounts import events as account_events
from services.registry.versions import events as version_events
from services.telemetry import events as telemetry_events

TOPICS = (
    account_events.ACCOUNT_CREATED,
    account_events.SIGNING_KEY_ANNOUNCED,
    version_events.VERSION_COMMITTED,
    version_events.PACKAGE_BUILT,
    version_events.PACKAGE_FAILED,
    version_events.VERSION_READIED,
    version_events.VERSION_ARCHIVED,
    registry_events.ALIAS_MOVED,
    deployer_events.COLLECTION_PUBLISHED,
    deployer_events.DECISION_MADE,
    deployer_events.DEVICE_REPORTED,
    telemetry_events.RECEIVED,
    telemetry_events.REJECTED,
)
