"""Packager: turns a committed version into signed packages.

Owns the tables `jobs`, `job_lines`, `packages` (and its outbox and seen events). Reads `version.committed` and `account.created`;
writes `package.built`, `package.failed` and `signing-key.announced`. Uploaded models are parsed and run only in one-shot child
processes (`child.py`), never in the service itself.
"""
