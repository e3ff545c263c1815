"""Perturbers by name: the rules, or a language model behind a server."""

from milonga.core.config import Asking
from milonga.core.errors import RecipeError
from milonga.core.protocols import Perturber


def perturber(name: str, asking: Asking | None = None) -> Perturber:
    """A perturber by name: `rules`, or a language model as `llm:MODEL@URL`, called as `asking` says.

    Raises RecipeError for another name, and where the `openai` client of a language model is not installed.
    """
    from milonga.perturbers.rules import RulePerturber

    if name == RulePerturber.name:
        return RulePerturber()
    if not name.startswith("llm:"):
        raise RecipeError(f"unknown perturber {name!r}: choose {RulePerturber.name} or llm:MODEL@URL")
    from milonga.perturbers.llm import named

    return named(name, asking)
