"""Where a class is found, in words that another process understands."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Reference:
    """A class by its module, its name there, and the file of the module, should it not be one that can be imported.

    Example:
        >>> from lightning_probes import FisherTrace
        >>> reference_to(FisherTrace).load() is FisherTrace
        True
    """

    module: str
    name: str
    file: str | None

    def load(self) -> Any:
        """The class."""
        return reduce(getattr, self.name.split("."), self._import())

    def _import(self) -> Any:
        if self.module in sys.modules and self.module != "__main__":
            return sys.modules[self.module]
        if self.module != "__main__":
            try:
                return importlib.import_module(self.module)
            except ModuleNotFoundError as error:
                if self.file is None or error.name is None or not self.module.startswith(error.name):
                    raise
        # A script, or a test file that pytest has imported by its path.
        name = "__mp_main__" if self.module == "__main__" else self.module
        spec = importlib.util.spec_from_file_location(name, str(self.file))
        if spec is None or spec.loader is None:
            raise ImportError(f"no module {self.module!r} at {self.file}")
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        spec.loader.exec_module(found)
        return found


def reference_to(kind: type[Any]) -> Reference:
    """Where a class is found.

    Raises:
        AssertionError: If it is made inside a function, or in a session without a file: no other process finds it.
    """
    try:
        file = inspect.getsourcefile(kind)
    except (OSError, TypeError):
        file = None
    if "<locals>" in kind.__qualname__ or (kind.__module__ == "__main__" and file is None):
        raise AssertionError(
            f"two processes can't import {kind.__qualname__} of {kind.__module__}: write the class at the top level of "
            "a module or test file"
        )
    return Reference(kind.__module__, kind.__qualname__, file)
