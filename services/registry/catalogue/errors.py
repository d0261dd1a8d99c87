"""What can go wrong with the catalogue."""

from __future__ import annotations

from kit.errors import Conflict, Invalid, NotFound, Unavailable


class CatalogueSourceNotFound(NotFound):
    """No such source."""

    code = "CATALOGUE_SOURCE_NOT_FOUND"


class CatalogueSourceExists(Conflict):
    """The location is a source already."""

    code = "CATALOGUE_SOURCE_EXISTS"


class CatalogueEntryNotFound(NotFound):
    """The catalogue has no such entry."""

    code = "CATALOGUE_ENTRY_NOT_FOUND"


class CatalogueLocationInvalid(Invalid):
    """The location or a key of a source is not usable."""

    code = "CATALOGUE_LOCATION_INVALID"


class CatalogueInvalid(Invalid):
    """What is at the location is no catalogue (docs/catalogue.md)."""

    code = "CATALOGUE_INVALID"


class CatalogueUnreachable(Unavailable):
    """A file of the source could not be read now."""

    code = "CATALOGUE_UNREACHABLE"
    retry_after_s = 30


class CataloguePackageInvalid(Conflict):
    """A package of the entry is not what its digest and signature say, or its variants do not fit together. Nothing was taken."""

    code = "CATALOGUE_PACKAGE_INVALID"
