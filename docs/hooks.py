"""MkDocs hooks: the pages of benchmarks/ and the changelog join the site, and links to them work.

On disk and on a code host `docs/results.md` links to `../benchmarks/data.md`, and that page to `../docs/results.md`. In
the site both lie in one tree, so links are rewritten while it is built. A link to a file of the repository that is no
page (a recipe, a script) becomes its text. A link to nothing stays, and the strict build fails on it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[\w-]+)?\)")
EXTRA = [str(path.relative_to(ROOT)) for path in [*sorted(ROOT.glob("benchmarks/*.md")), ROOT / "CHANGELOG.md"]]


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages outside docs/ under their paths in the repository."""
    for name in EXTRA:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page's text with its relative links as the site needs them."""
    source = page.file.src_uri
    folder = posixpath.dirname(source if source in EXTRA else f"docs/{source}")

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        inside = path.removeprefix("docs/")
        if files.get_file_from_path(inside) is not None:
            return f"[{match[1]}]({posixpath.relpath(inside, posixpath.dirname(source) or '.')}{match[3] or ''})"
        return match[1] if (ROOT / path).exists() else match[0]

    return LINK.sub(rewritten, markdown)
