"""docs/recipes.md has every key of a recipe, once, with the default that the models have."""

import re
import tomllib
from pathlib import Path

import pytest

from milonga.core.config import Asking, Phase, RewardModel, Strategy, Threshold, Workers
from milonga.core.records import Record
from milonga.experiment import recipe, recipe_tables
from milonga.experiment.changes import FIRST_CHANGED

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
TABLES: dict[str, type[Record]] = {
    "Top level": recipe.Recipe,
    "`[models]`": recipe_tables.Models,
    "`[prompts]`": recipe_tables.Prompts,
    "`[plan]`": recipe_tables.Plan,
    "`[plan.llm]`": Asking,
    "`[[plan.strategies]]`": Strategy,
    "`[workers]`": Workers,
    "`[generate]` and `[score]`": recipe_tables.Batch,
    "`[pair]`": recipe_tables.Pairing,
    "`[[pair.thresholds]]`": Threshold,
    "`[label]`": recipe_tables.Labels,
    "`[reward]`": RewardModel,
    "`[rounds]`": recipe_tables.Rounds,
    "`[train]`": recipe_tables.Train,
    "`[[train.systems]]`": recipe_tables.System,
    "`phases` of a system": Phase,
    "`[evaluate]`": recipe_tables.Evaluate,
}


def rows(heading: str) -> dict[str, str]:
    """The keys of one section's table with their defaults as written."""
    section = re.split(r"^#+ ", PAGE, flags=re.M)
    text = next(part for part in section if part.startswith(f"{heading}\n"))
    found = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", text, re.M)
    assert len(dict(found)) == len(found), f"{heading}: a key comes twice"
    return dict(found)


def default_of(kind: type[Record], key: str) -> object:
    """A field's default as the page writes it: its value, or `required`, `none`, `below` (a table of its own)."""
    field = kind.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Record):
        return "below"
    return "none" if value is None else list(value) if isinstance(value, tuple) else value


def written(cell: str) -> object:
    """A default's cell: TOML between backticks, or a word."""
    return tomllib.loads(f"value = {cell.strip('`')}")["value"] if cell.startswith("`") else cell


@pytest.mark.parametrize(("heading", "kind"), TABLES.items(), ids=[kind.__name__ for kind in TABLES.values()])
def test_every_key_is_there_with_its_default(heading, kind):
    assert {key: written(cell) for key, cell in rows(heading).items()} == {
        key: default_of(kind, key) for key in kind.model_fields
    }


def test_every_record_of_the_recipe_has_its_table():
    own = {
        one
        for one in (vars(recipe) | vars(recipe_tables)).values()
        if isinstance(one, type) and issubclass(one, Record)
    }
    assert own - {Record} <= set(TABLES.values()) | {recipe_tables.Settings}


def test_what_a_change_means_is_told_for_every_key_that_has_a_rule():
    table = PAGE.split("## When a recipe changes")[1]
    assert [key for key in FIRST_CHANGED if key != "name" and f"`{key}`" not in table] == []
