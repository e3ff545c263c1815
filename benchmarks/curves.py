"""The loss curves of nano's training tasks as one SVG: python benchmarks/curves.py WORK docs/images/nano-curves.svg

WORK is the folder that `milonga nano train --work` kept its checkpoints in. Losses on a logarithmic scale.
"""

import json
import sys
from pathlib import Path

import numpy as np

from milonga.reports.figures import HEIGHT, WIDTH, Line, curves

COLUMNS, TITLE = 3, 18
STYLE = """
text { font: 10.5px system-ui, sans-serif; fill: #666 } .name { font-weight: 600; fill: #222 }
.grid { stroke: #e3e3e3 } .axis { stroke: #888 } .curve { fill: none; stroke: #1f6f8b; stroke-width: 1.8 }
.faint { stroke-width: 1; opacity: .3 }
"""


def rows(path: Path) -> list[dict[str, float]]:
    """The rows of a task's log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def panel(path: Path, place: int) -> str:
    """One task's curve, moved to its place in the grid."""
    read = [(row["step"], row["loss"]) for row in rows(path)]
    steps, losses = np.array(read, dtype=np.float64).T
    name = path.parent.name
    drawn = curves([Line(name, "c1", steps, np.log10(losses))], [], int(steps[-1]), f"loss of {name}")
    x, y = WIDTH * (place % COLUMNS), (HEIGHT + TITLE) * (place // COLUMNS)
    size = f'width="{WIDTH}" height="{HEIGHT}" y="{TITLE}"'
    title = f'<text class="name" x="44" y="{TITLE - 4}">{name}: log10 of the loss by step</text>'
    return f'<g transform="translate({x} {y})">{title}{str(drawn).replace("<svg ", f"<svg {size} ", 1)}</g>'


def main(work: Path, out: Path) -> None:
    """Draws every task's log that WORK holds."""
    panels = [panel(path, place) for place, path in enumerate(sorted(work.glob("*/curves.jsonl")))]
    height = (HEIGHT + TITLE) * -(-len(panels) // COLUMNS)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * COLUMNS} {height}">'
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"{head}<style>{STYLE}</style>{back}{''.join(panels)}</svg>\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
