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


LEFT = """
import gc, json, sys
from milonga.models.load import pipeline
pipe = pipeline("nano")
loaded = [name for name in HEAVY if name in sys.modules]
from milonga.core.deferred import _Deferred
gc.unfreeze()  # what is frozen is not listed
left = [one for one in gc.get_objects() if type(one) is _Deferred]
compared = [str(vars(one)) for one in left for user in gc.get_referrers(one)
            if isinstance(user, (set, frozenset)) or isinstance(user, dict) and any(key is one for key in user)]
raised = [vars(one)["_name"] for one in left if vars(one)["_name"].endswith(("Error", "Exception", "Warning"))]
for one in left:
    one._resolve()  # a name that its module has not, which a plain import would have refused, raises
import scipy.special
assert float(scipy.special.expit(0)) == 0.5
print(json.dumps([loaded, len(left), compared, raised]))
"""
CLIP = """
import sys
if sys.argv[1] == "plain":
    import torch, accelerate, peft, scipy.stats, sklearn, torch._dynamo, torch._inductor, torch.distributed.tensor
    import torch.distributed.fsdp, torch.distributed.checkpoint, diffusers, transformers
import hashlib, milonga
pipe = milonga.load("nano", scheduler="ddim")
print(hashlib.sha256(pipe("a dog barks", seeds=7, num_inference_steps=3).audios.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_what_is_left_deferred_is_only_called_or_asked_for_instances() -> None:
    """Generating loads neither compiler nor statistics. What stands for their names afterwards exists in the real
    modules, and is nowhere where Python would compare it with the real one: no key, no member of a set, no exception.
    """
    heavy = ["torch._inductor", "torch.distributed.tensor", "scipy", "sklearn", "pandas", "sympy"]
    script = f"HEAVY = {heavy}\n{LEFT}"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded, left, compared, raised = json.loads(output)
    assert (loaded, compared, raised) == ([], [], [])
    assert left > 10


@pytest.mark.slow  # two cold starts, one of them with all that is deferred
def test_a_clip_has_the_same_bits_where_everything_was_imported_first() -> None:
    def clip(way: str) -> str:
        return subprocess.run([sys.executable, "-c", CLIP, way], capture_output=True, text=True, check=True).stdout

    plain = clip("plain")
    assert len(plain.strip()) == 64
    assert clip("deferred") == plain
