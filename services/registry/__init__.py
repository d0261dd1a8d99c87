"""The registry: accounts and keys, devices' identity, uploads, models, versions, aliases, packages, and the catalogue.

Owns every table of `tables.py` (one database, one Alembic tree). Writes the topics `account.created`, `version.committed`,
`version.readied`, `version.archived`, `alias.moved`; reads `package.built`, `package.failed`, `signing-key.announced`,
`collection.published`.
Rooms, each with the same file names: `accounts` (with `accounts/enrolment` for devices), `versions`, `uploads`, `catalogue`;
models and aliases are here. It never looks inside a model file.
"""
