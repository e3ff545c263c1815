"""Deferred imports: nothing is loaded before it is used, and what is used is the real thing."""

import json
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from milonga.core.deferred import deferred_imports

HEAVY = """
import importlib.metadata
__version__ = "1"
class Shape:
    sides = 3
    def __init__(self, name): self.name = name
def allow_in_graph(function): return "marked"
def area(): return 7
"""
USER = """
import heavy_part
from heavy_part import Shape, allow_in_graph, area
default = Shape("default")
value = area()
text: Shape | None = None
@allow_in_graph
def plain(): return 1
def is_shape(thing): return isinstance(thing, Shape)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "heavy_part").mkdir()
    (tmp_path / "heavy_part" / "__init__.py").write_text(HEAVY)
    (tmp_path / "user_part.py").write_text(USER)
    (tmp_path / "heir_part.py").write_text("from heavy_part import Shape\nclass Square(Shape): sides = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("heavy_part", "user_part", "heir_part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_module_is_imported_when_something_of_it_is_used(packages: Path) -> None:
    with deferred_imports(["heavy_part"]):
        import user_part  # pyright: ignore[reportMissingImports]

        assert not user_part.is_shape(3)
    assert "heavy_part" not in sys.modules
    assert user_part.plain() == 1
    assert not user_part.is_shape(3)
    assert "heavy_part" not in sys.modules  # nothing can be an instance of a class that was never imported

    assert user_part.area() == 7
    import heavy_part  # pyright: ignore[reportMissingImports]

    assert user_part.is_shape(heavy_part.Shape("a"))
    assert user_part.default.name == "default"
    assert user_part.Shape.sides == 3
    assert user_part.heavy_part.Shape("b").name == "b"


def test_a_subclass_gets_its_real_base_at_once(packages: Path) -> None:
    with deferred_imports(["heavy_part"]):
        import heir_part  # pyright: ignore[reportMissingImports]
    assert heir_part.Square("s").name == "s"
    assert type(sys.modules["heavy_part"]).__name__ == "module"


def test_another_thread_imports_as_usual(packages: Path) -> None:
    values = []

    def use() -> None:
        import heavy_part  # pyright: ignore[reportMissingImports]

        values.append(heavy_part.area())

    with deferred_imports(["heavy_part"]):
        thread = Thread(target=use)
        thread.start()
        thread.join()
        import user_part  # pyright: ignore[reportMissingImports]
    assert values == [7]
    assert user_part.value == 7  # what is imported already stays what it is


def test_generating_loads_neither_compiler_nor_statistics() -> None:
    heavy = ["torch._inductor", "torch.distributed.tensor", "scipy", "sklearn", "pandas"]
    script = f"""
import json, sys
from milonga.models.load import pipeline
pipe = pipeline("nano")
print(json.dumps([name for name in {heavy} if name in sys.modules]))
import scipy.special
assert float(scipy.special.expit(0)) == 0.5
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == []
