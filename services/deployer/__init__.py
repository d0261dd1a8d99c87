"""The deployer: which package does this device get, why, and who has what.

Owns the tables of `tables.py`: collections, drafts, revisions, its own copy of versions, packages and aliases, devices and decisions.
Topics in: account.created, version.readied, version.archived, alias.moved, decision.made, device.reported.
Topics out: signing-key.announced (outbox), decision.made and device.reported (before the device is answered).
"""
