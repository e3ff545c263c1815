"""README's list of rooms is the package's, floor by floor, and README stays short."""

from pathlib import Path

from test_floors import ROOMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_rooms_are_those_of_the_package_from_the_ground_up():
    section = README.split("## Rooms")[1]
    words = section.split("```")[1].split("\n")
    listed = [room for line in words if line for room in line.split("   ")[0].split()]
    assert listed == [room for floor in ROOMS for room in floor]


def test_every_folder_of_the_package_is_a_room():
    folders = {path.parent.name for path in (ROOT / "src" / "milonga").glob("*/__init__.py")}
    assert folders == {room for floor in ROOMS for room in floor}


def test_readme_is_short():
    assert len(README.splitlines()) <= 130


def test_readme_names_the_two_commands_of_a_newcomer():
    assert "make demo" in README
    assert "make test" in README
