"""What the clusters of captions are: their sizes, examples and places on a map, as records and as a page."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from milonga.core.ids import content_id
from milonga.core.records import Prompt, Record
from milonga.preference.select import Clusters

EXAMPLES = 3
FEW = 500  # up to so many captions are drawn as larger dots
DOTS = 4000  # captions drawn on the map; of more, those with the smallest hashes
WIDTH, HEIGHT, EDGE = 900, 620, 24


class Cluster(Record):
    """A cluster: how many captions it has and gave, those nearest to its centre, and its mean place on the map."""

    number: int
    size: int
    taken: int
    examples: tuple[str, ...]
    x: float
    y: float


def cluster_rows(clusters: Clusters, selected: Sequence[Prompt]) -> list[Cluster]:
    """A row for each cluster that is not empty, the largest first."""
    places, chosen = flat(clusters.rows), {prompt.id for prompt in selected}
    rows = []
    for number in range(clusters.count):
        members = np.flatnonzero(clusters.labels == number)
        if not len(members):
            continue
        nearest = members[np.argsort(clusters.distances[members], kind="stable")[:EXAMPLES]]
        x, y = places[members].mean(axis=0)
        rows.append(
            Cluster(
                number=number,
                size=len(members),
                taken=sum(clusters.prompts[i].id in chosen for i in members),
                examples=tuple(clusters.prompts[i].text for i in nearest),
                x=float(x),
                y=float(y),
            )
        )
    return sorted(rows, key=lambda row: (-row.size, row.number))


def flat(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) on their first two principal axes, (N, 2): what lies apart is different, what overlaps may be."""
    centred = rows - rows.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    two = axes[:, ::-1][:, :2]
    # An axis has no sign of its own: the largest part points up, so that the same rows give the same map.
    two = two * np.sign(two[np.abs(two).argmax(axis=0), np.arange(two.shape[1])])
    return np.pad(centred @ two, ((0, 0), (0, 2 - two.shape[1])))


def page(clusters: Clusters, selected: Sequence[Prompt], embedder: str) -> str:
    """The clusters as one HTML page that needs nothing else: the map, and a table of sizes and examples."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("milonga.reports", "templates/clusters"), autoescape=True, undefined=StrictUndefined
    )
    rows = cluster_rows(clusters, selected)
    return pages.get_template("page.html").render(
        rows=rows,
        map=_map(clusters, selected, rows),
        captions=len(clusters.prompts),
        selected=len(selected),
        embedder=embedder,
    )


def _map(clusters: Clusters, selected: Sequence[Prompt], rows: Sequence[Cluster]) -> Markup:
    """Captions as dots, those taken in colour, and each cluster's number at its mean place."""
    places, chosen = flat(clusters.rows), {prompt.id for prompt in selected}
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    room = np.array([WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE])

    def at(place: np.ndarray) -> tuple[float, float]:
        x, y = EDGE + (place - low) / np.where(span > 0, span, 1.0) * room
        return round(float(x), 1), round(HEIGHT - float(y), 1)

    shown = sorted(range(len(places)), key=lambda i: content_id("map", clusters.prompts[i].id))[:DOTS]
    dots = {False: "", True: ""}
    for i in shown:
        x, y = at(places[i])
        dots[clusters.prompts[i].id in chosen] += f"M{x} {y}h0"
    names = []
    for row in rows:
        x, y = at(np.array([row.x, row.y]))
        title = escape(f"{row.number}: {row.size} captions, {row.taken} taken; {row.examples[0]}")
        names.append(f'<text x="{x}" y="{y}"><title>{title}</title>{row.number}</text>')
    size = "few" if len(places) <= FEW else "many"
    return Markup(  # every text was escaped above; the rest are numbers
        f'<svg class="{size}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Map of {len(places)} captions">'
        f'<path class="left" d="{dots[False]}"/><path class="taken" d="{dots[True]}"/>{"".join(names)}</svg>'
    )
