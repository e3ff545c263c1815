"""The generated pages of docs/reference/ are what the command line, the recipe's models and the docstrings say."""

import re
import tomllib

import cli_page
import pytest
import recipe_page
from reference_pages import FOLDER, PAGES
from typer.testing import CliRunner

from milonga.cli.main import app
from milonga.experiment.invalidation import FIRST_CHANGED
from milonga.experiment.overrides import RENAMED_KEYS

CLI = (FOLDER / "cli.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^## `milonga ?(.*)`$", cli_page.page(), re.M)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name):
    assert PAGES[name]() == (FOLDER / name).read_text(encoding="utf-8"), f"{name} is out of date: run `make docs`"


def options_of(command: str) -> set[str]:
    """The options that the page lists under a command."""
    part = CLI.split(f"## `milonga {command}".rstrip() + "`\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(-[\w-]+)", part, re.M))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_same_options(command):
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert set(re.findall(r"^ +(-[\w-]+)", result.output, re.M)) - {"--help"} == options_of(command)


def test_every_job_has_its_command():
    assert {"generate", "run", "status", "train", "evaluate", "listen make", "studio"} <= set(COMMANDS)


def test_every_key_of_a_recipe_is_described_and_no_other():
    texts = tomllib.loads(recipe_page.KEYS.read_text(encoding="utf-8"))
    described = {name: set(table) - {"about"} for name, table in texts.items() if isinstance(table, dict)}
    assert described == {path or "recipe": set(kind.model_fields) for path, kind in recipe_page.tables()}


def test_the_recipe_page_says_what_a_change_of_every_key_redoes():
    table = (FOLDER / "recipe.md").read_text(encoding="utf-8").split("## When a recipe changes")[1]
    assert [key for key in FIRST_CHANGED if key != "name" and f"`{key}`" not in table] == []


def test_the_changelog_lists_every_renamed_key():
    text = (FOLDER.parents[1] / "CHANGELOG.md").read_text(encoding="utf-8").split("## First edition")[0]
    table = text.split("### Renamed recipe keys")[1].split("###")[0]
    words = set(re.findall(r"[a-z_]+", table))
    renamed = {name for keys in RENAMED_KEYS.values() for pair in keys.items() for name in pair}
    assert renamed - words == set()
