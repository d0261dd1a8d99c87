"""`latebindd prefetch`: makes converter environments ahead of the first job, for operators, images and CI."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.packager.environments import EnvironmentFailed, Environments, names
from services.packager.settings import PackagerSettings

#: All that there are.
ENVIRONMENTS = names()


async def prefetch(chosen: Sequence[str]) -> int:
    """Make the named environments, one after the other, saying what happens. Returns the exit code."""
    settings = PackagerSettings()
    environments = Environments(settings.environments, settings.wheels_dir)

    def tell(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    for name in chosen:
        try:
            environment = await environments.ready(name, tell)
        except EnvironmentFailed as error:
            sys.stderr.write(f"the converter environment {name} cannot be made:\n{error}\n")
            return 1
        tell(f"{name}: {environment.folder}")
    return 0
