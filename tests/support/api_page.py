"""docs/reference/api.md as text: the public names of milonga with their signatures and docstrings."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import milonga

HEAD = """# Python API

Generated from the docstrings of the public names (`milonga.__all__`) by `make docs`; a test keeps it true. Everything
else in the package may change without notice. `import milonga` is instant: torch and the other heavy libraries are
imported when a name that needs them is first used.
"""
WIDTH = 100


def page() -> str:
    """The whole page: functions first, then classes, each group in the order of the alphabet."""
    names = [name for name in milonga.__all__ if not name.startswith("__")]
    values = {name: getattr(milonga, name) for name in names}
    functions = sorted(name for name, value in values.items() if not isinstance(value, type))
    classes = sorted(name for name, value in values.items() if isinstance(value, type))
    parts = [HEAD.strip(), "## Functions", *(entry(f"milonga.{name}", values[name]) for name in functions)]
    parts += ["## Classes", *(part for name in classes for part in of_class(name, values[name]))]
    return "\n\n".join(parts) + "\n"


def of_class(name: str, kind: type) -> Iterator[str]:
    """A class with its fields, its methods and its properties, as far as the package itself defines them."""
    yield entry(f"milonga.{name}", kind)
    fields = getattr(kind, "model_fields", {})
    if fields:
        rows = [f"| `{key}` | {field_default(field)} |" for key, field in fields.items()]
        yield "\n".join(["| field | default |", "|---|---|", *rows])
    for key, value in members(kind):
        yield entry(f"{name}.{key}", value, level=4)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that classes of the package define, in the order of the source."""
    seen: set[str] = set()
    for base in (one for one in kind.__mro__ if one.__module__.startswith("milonga.")):
        for key, value in vars(base).items():
            public = not key.startswith("_") or key == "__call__"
            plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if public and key not in seen and (inspect.isfunction(plain) or isinstance(plain, property)):
                seen.add(key)
                yield key, plain


def entry(title: str, value: Any, level: int = 3) -> str:
    """A heading, the signature as code and the docstring."""
    shown = title if isinstance(value, property) else signature(title.removeprefix("milonga."), value)
    text = inspect.cleandoc(value.__doc__ or "")
    code = "" if isinstance(value, property) else f"```python\n{shown}\n```\n\n"
    return f"{'#' * level} `{title}`\n\n{code}{text}".rstrip()


def signature(name: str, value: Any) -> str:
    """The signature, one parameter a line where it is long; annotations as they are written."""
    try:
        parameters = [one for one in inspect.signature(value).parameters.values() if one.name not in ("self", "cls")]
    except (TypeError, ValueError):
        return f"{name}(...)"
    words, starred = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not starred:
            words, starred = [*words, "*"], True
        starred = starred or one.kind is one.VAR_POSITIONAL
        words.append(parameter(one))
    returned = inspect.signature(value).return_annotation
    end = f") -> {annotation(returned)}" if returned not in (inspect.Signature.empty, None, "None") else ")"
    flat = f"{name}({', '.join(words)}{end}"
    return flat if len(flat) <= WIDTH else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + end


def parameter(one: inspect.Parameter) -> str:
    star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    kind = "" if one.annotation is one.empty else f": {annotation(one.annotation)}"
    if one.default is one.empty:
        return f"{star}{one.name}{kind}"
    return f"{one.name}{kind}{' = ' if kind else '='}{value_of(one.default)}"


def annotation(kind: Any) -> str:
    """An annotation without the paths of the modules."""
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")


def value_of(value: Any) -> str:
    text = repr(value)
    return "..." if " at 0x" in text or len(text) > 60 else text


def field_default(field: Any) -> str:
    if field.is_required():
        return "required"
    return f"`{value_of(field.get_default(call_default_factory=True))}`"


if __name__ == "__main__":
    print(page(), end="")
