"""References to classes that another process can resolve."""

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
    """A class by its module, its name there, and the module's file in case the module can't be imported by name.

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
        # The class is in a script, or in a test file that pytest has imported by its path.
        name = "__mp_main__" if self.module == "__main__" else self.module
        spec = importlib.util.spec_from_file_location(name, str(self.file))
        if spec is None or spec.loader is None:
            raise ImportError(f"no module {self.module!r} at {self.file}")
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        spec.loader.exec_module(found)
        return found


def reference_to(kind: type[Any]) -> Reference:
    """A reference to a class.

    Raises:
        AssertionError: If another process can't import the class, because it was defined inside a function or in a
            session without a file.
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
