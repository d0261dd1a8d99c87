"""Versions of a model: declaration, parameter contract, commit, packages, comparison. Packaging itself happens in the packager."""
