"""README's tree is the package's: every module is in it, and nothing in it is missing."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "src/milonga"


def listed(text: str) -> Iterator[tuple[str, str]]:
    """(path, what is said of it) of each line of the tree, whose indentation says which folder it is in."""
    blocks = [block.strip("\n") for block in text.split("```")[1::2]]
    block = next(one for one in blocks if one.startswith(PACKAGE))
    folders: list[str] = []
    for line in block.splitlines():
        spaces, name, said = re.match(r"( *)(\S+) *(.*)", line).groups()
        del folders[len(spaces) // 2 :]
        yield "".join([*folders, name]), said
        folders.append(name)


TREE = dict(listed((ROOT / "README.md").read_text(encoding="utf-8")))


def test_every_module_is_in_the_tree():
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.py") if path.name != "__init__.py"}
    assert sorted(modules - TREE.keys()) == []


def test_nothing_in_the_tree_is_missing():
    assert [path for path in TREE if not (ROOT / path).exists()] == []


def test_every_file_is_told_in_a_few_words():
    assert [path for path, said in TREE.items() if path.endswith(".py") and not 8 <= len(said) <= 110] == []
