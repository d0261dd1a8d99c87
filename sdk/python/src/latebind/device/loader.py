"""From an installed package of a collection to a loaded model, with the traces that this leaves in state and telemetry.

It decides nothing: which package is loaded, and what a failure means, is the updater's business.
"""

from __future__ import annotations

from latebind.device.handle import source_of
from latebind.device.parts import DeviceParts
from latebind.device.runtime import LoadedModel, load_model, run_golden_test
from latebind.device.state import PackageRef, StateFile
from latebind.errors import CacheDamaged


class Loader:
    """Loads models of one collection."""

    def __init__(self, parts: DeviceParts, collection: str, state: StateFile) -> None:
        self._parts = parts
        self._collection = collection
        self._state = state

    def load_warily(self, ref: PackageRef, *, test: bool) -> LoadedModel:
        """`load`, leaving a trace in case that the process dies in it. What has answered before is trusted."""
        state = self._state.value
        if state.current is not None and state.current.digest == ref.digest and state.proved:
            return self.load(ref, test=test)
        self._state.update_if_possible(lambda state: state.began(ref.digest))
        try:
            return self.load(ref, test=test)
        finally:
            self._state.update_if_possible(lambda state: state.survived(ref.digest))

    def load(self, ref: PackageRef, *, test: bool) -> LoadedModel:
        """Open and load an installed package. Raises CacheDamaged, EngineMissing, LoadFailed, GoldenTestFailed."""
        parts = self._parts
        trust = parts.api.identity.trust
        if trust is None:
            raise CacheDamaged("the keys to check installed packages with are gone")
        try:
            package = parts.cache.open(ref.digest, account=parts.account, trust=trust)
            model = load_model(package, collection=self._collection, engines=parts.engines, threads=parts.options.threads)
            if test:
                run_golden_test(model)
                self._state.update_if_possible(lambda state: state.tested(ref.digest, parts.machine))
        except CacheDamaged:
            # The seal goes: the next look at the package hashes every file, and the next check fetches what is wrong.
            parts.cache.distrust(ref.digest)
            raise
        parts.telemetry.record_load(source_of(model.info), model.load_us)
        return model
