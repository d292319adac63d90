"""Old names of modules: for one version they lead to today's, with a warning."""

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _OldNames(MetaPathFinder, Loader):
    """Finds today's modules under old names."""

    def __init__(self, package: str, moved: Mapping[str, str]) -> None:
        self.moved = {f"{package}.{old}": f"{package}.{new}" for old, new in moved.items()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in self.moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = self.moved[spec.name]
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run; the module keeps what it says of itself."""
        module.__spec__ = module.__spec__ and module.__spec__.loader_state


def keep_old_names(package: str, moved: Mapping[str, str]) -> None:
    """Let `package.old` be imported as `package.new`, for each old name and the new one."""
    sys.meta_path.append(_OldNames(package, moved))
