"""Imports of diffusers and transformers without the two thirds of them that Milonga never reaches.

Both import the compiler's, sharding's, peft's and scipy's modules when they are imported, seven of eleven seconds of a
CPU, and use them in a few functions. Inside `deferred_imports()` a name taken from one of these modules is only noted,
and is looked up when it is first used: what Python's own `lazy import` (PEP 810) does, which no version does yet.

Our own imports cannot be moved instead: both libraries import these modules at the top of files that every network
needs, and have no switch for it that would not also take away what they are for. A stand-in is safe where it is only
called, subclassed or asked for instances, and not where Python compares identities (keys, sets, `except`) or where a
missing name was to be refused. tests/core/test_deferred.py looks at every stand-in that is left after nano was loaded.
"""

import functools
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from threading import RLock, get_ident
from types import ModuleType
from typing import Any

DEFERRED = (
    "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp",
    "torch.distributed._composable", "torch.distributed.checkpoint", "accelerate", "peft", "scipy", "sklearn",
)  # fmt: skip
# The same while a network is loaded, which uses accelerate, and asks of the others whether something is an instance of
# what they define.
LOADING = tuple(name for name in DEFERRED if name != "accelerate")
# Decorators that only say to the compiler how to take a function, which stays as it is without a compiler.
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
_lock = RLock()
_active: "list[_Finder]" = []


class _Deferred:
    """A name of a module that is imported when the name is used, or what calling it gives. Nothing is an instance of a
    class that was never imported.
    """

    def __init__(self, module: str, name: str, call: "Callable[[], Any] | None" = None) -> None:
        self.__dict__.update(_module=module, _name=name, _call=call)

    def _waits(self) -> bool:
        return _importing() and _active[-1].defers(self._module)

    def _resolve(self) -> Any:
        if self._waits():
            _active[-1].give_up(self._module)
        return self._call() if self._call else getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._waits():
            return self._resolve()(*args, **kwargs)
        if self._name in MARKS:
            return args[0] if args and args[0] is not None else lambda function: function
        return _Deferred(self._module, self._name, lambda: self._resolve()(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._waits():
            return _Deferred(self._module, name, lambda: getattr(self._resolve(), name))
        return getattr(self._resolve(), name)

    def __bool__(self) -> bool:
        return self._waits() or bool(self._resolve())

    def __instancecheck__(self, value: Any) -> bool:
        return self._module in sys.modules and not self._waits() and isinstance(value, self._resolve())

    def __subclasscheck__(self, kind: type) -> bool:
        return self._module in sys.modules and not self._waits() and issubclass(kind, self._resolve())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._resolve(),)

    def __or__(self, other: Any) -> Any:  # in annotations, as the next two
        return Any

    __ror__ = __or__

    def __getitem__(self, item: Any) -> Any:
        return Any


class _DeferredModule(ModuleType):
    """Stands for a module, and gives its names as deferred ones."""

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return importlib.metadata.version(self.__name__)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Deferred(self.__name__, name)


class _Finder:
    """Finds the deferred modules, for one thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.modules, self.thread = list(names), list[str](), get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A deferred module's spec; None, which leaves it to Python, for any other and for other threads."""
        if get_ident() == self.thread and self.defers(name):
            return ModuleSpec(name, self, is_package=True)  # pyright: ignore[reportArgumentType]
        return None

    def defers(self, name: str) -> bool:
        """Whether a module is one of those that are deferred, or inside one."""
        return any(f"{name}.".startswith(f"{root}.") for root in self.names)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module in the place of the real one."""
        self.modules.append(spec.name)
        return _DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run."""

    def give_up(self, name: str) -> None:
        """Lets a module be imported after all: something is made of it at once, such as a subclass."""
        self.names = [root for root in self.names if not f"{name}.".startswith(f"{root}.")]
        self.remove()

    def remove(self) -> None:
        """Takes the deferred modules out of `sys.modules` and of their packages, so that the real ones are found."""
        for name in self.modules:
            if isinstance(sys.modules.get(name), _DeferredModule):
                del sys.modules[name]
            package, _, child = name.rpartition(".")
            if isinstance(vars(sys.modules.get(package, self)).get(child), _DeferredModule):
                delattr(sys.modules[package], child)
        self.modules.clear()


def _importing() -> bool:
    return bool(_active) and _active[-1].thread == get_ident()


@contextmanager
def deferred_imports(names: Sequence[str] = DEFERRED) -> Iterator[None]:
    """Inside, modules under these names are not imported before something of them is used.

    A module that is imported already stays what it is. The garbage collector rests meanwhile, and leaves alone
    what is imported the first time: it would visit a quarter of a million objects many times over, and again at exit.
    """
    import torch  # noqa: F401  torch's own modules need those that others can do without

    with _lock:
        if _importing():
            yield
            return
        finder = _Finder([n for n in names if n not in sys.modules])
        distributions: Any = importlib.metadata
        first = not {"diffusers", "transformers"} & sys.modules.keys()
        listing, collecting = distributions.packages_distributions, gc.isenabled()
        distributions.packages_distributions = functools.cache(listing)  # both libraries read every package's list
        sys.meta_path.insert(0, finder)  # pyright: ignore[reportArgumentType]
        _active.append(finder)
        gc.disable()
        try:
            yield
        finally:
            _active.pop()
            sys.meta_path.remove(finder)  # pyright: ignore[reportArgumentType]
            finder.remove()
            distributions.packages_distributions = listing
            if collecting:
                gc.enable()
            if first:  # later there may be garbage among the objects, which would never be freed
                gc.freeze()
