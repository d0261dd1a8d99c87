"""Pre-packaged models that an account takes over with one call, from sources that the operator named (docs/catalogue.md)."""
