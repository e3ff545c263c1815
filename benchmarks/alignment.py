"""The tables of benchmarks/alignment-ways.md out of finished runs of recipes/alignment.toml, one run a seed.

    python benchmarks/alignment.py RUN [RUN ...] [--split temporal] [--write PAGE] [--part sweeps]

First every system's mean gain over the base, and in how many runs it was significant; then, for every metric, the
gains in each run with their 95 % intervals over captions, so that one lucky seed cannot be mistaken for a result; then
the systems' values, what the reward models were worth, and the rounds. Of a single run there is one table of gains.
`--write` puts all that between two markers of a page, named by `--part`, and leaves the rest.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tables import METRICS, row, stored_differences, stored_values, values

from milonga.core.errors import DataError
from milonga.core.records import Comparison
from milonga.core.store import write_text
from milonga.reports.material import read_material
from milonga.reports.tables import reward_sentence


def against_base(run: Path, split: str) -> dict[tuple[str, str], Comparison]:
    """By system and metric, what each system of a run gained over the base."""
    return {(one.a, one.metric): one for one in stored_differences(run, split) if one.b == "base"}


Gains = list[dict[tuple[str, str], Comparison]]  # of each run, by system and metric


def known(tables: Gains) -> tuple[list[str], list[str]]:
    """The systems and the metrics of which there are gains."""
    systems = list(dict.fromkeys(system for table in tables for system, _ in table))
    return systems, [one for one in METRICS if any((system, one) in table for table in tables for system in systems)]


def at_a_glance(tables: Gains) -> Iterator[str]:
    """A line for each system: its gains over the base, in the mean of the runs where there are several."""
    systems, metrics = known(tables)
    yield row("gain over the base", *(METRICS[metric] for metric in metrics))
    yield row(*["---"] * (len(metrics) + 1))
    for system in systems:
        held = [[table.get((system, metric)) for table in tables] for metric in metrics]
        yield row(system, *(_cell(one[0]) if len(tables) == 1 else _glance(one) for one in held))


def gains(tables: Gains, names: Sequence[str]) -> Iterator[str]:
    """For every metric, each system's gain over the base in every run; bold where it is statistically significant."""
    systems, metrics = known(tables)
    for metric in metrics:
        yield f"\n**{METRICS[metric]}**, gain over the base\n"
        yield row("system", *names, "mean of runs")
        yield row(*["---"] * (len(names) + 2))
        for system in systems:
            held = [table.get((system, metric)) for table in tables]
            yield row(system, *map(_cell, held), _mean(held))


def _cell(one: Comparison | None) -> str:
    if one is None:
        return ""
    text = f"{one.difference:+.3f}"
    return f"{text if one.better == 'neither' else f'**{text}**'} [{one.low:+.3f}, {one.high:+.3f}]"


def _glance(held: Sequence[Comparison | None]) -> str:
    """The mean over runs, and in how many of them it was significantly better (+) or worse (−) than the base."""
    found = [one for one in held if one is not None]
    better = sum(one.better == one.a for one in found)
    worse = sum(one.better == one.b for one in found)
    told = ", ".join(f"{sign}{count}" for sign, count in (("+", better), ("−", worse)) if count)
    mean = f"{statistics.mean(one.difference for one in found):+.3f}"
    return f"**{mean}** ({told} of {len(found)})" if told else mean


def _mean(held: Sequence[Comparison | None]) -> str:
    """The mean over runs with its range: three seeds are too few for an interval."""
    found = [one.difference for one in held if one is not None]
    if len(found) < 2:
        return ""
    return f"{statistics.mean(found):+.3f} ({min(found):+.3f} to {max(found):+.3f})"


def learnt(runs: Sequence[Path]) -> Iterator[str]:
    """What the reward model of each run was worth, and its rounds."""
    for run in runs:
        material = read_material(run)
        if text := reward_sentence(material.reward):
            yield f"\n{run.name}: {text}"
        for system, rounds in material.rounds.items():
            yield f"\n{run.name}, {system}: the judge on the captions that decide\n"
            yield row("policy", "clips", "pairs", "judge CLAP", "gain over the best before")
            yield row(*["---"] * 5)
            for one in rounds:
                name = f"round {one.number}" if one.number else "base"
                gain = f"{one.gain:+.4f} [{one.gain_low:+.4f}, {one.gain_high:+.4f}]" if one.number else ""
                judge = f"{one.judge:.4f} [{one.low:.4f}, {one.high:.4f}]"
                yield row(name, str(one.clips), str(one.pairs), judge, gain)


def page(runs: Sequence[Path], split: str) -> str:
    """All tables as Markdown."""
    tables = [against_base(run, split) for run in runs]
    lines = list(at_a_glance(tables))
    if len(runs) > 1:
        lines += gains(tables, [run.name for run in runs])
    for run in runs:
        lines += [f"\n**{run.name}**, {split} captions\n", *values(stored_values(run, split))]
    return "\n".join([*lines, *learnt(runs)]).strip()


def written(text: str, tables: str, part: str) -> str:
    """A page with other tables between a part's markers; DataError where it has none."""
    first, last = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise DataError(f"the page lacks {first} or {last}, between which the tables stand")
    return f"{head}{begin}\n{tables}\n{end}{tail}"


def main() -> None:
    """Prints the tables of the runs that were named, or writes them into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--split", default="overall")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--part", default="results")
    asked = parser.parse_args()
    tables = page(asked.runs, asked.split)
    if asked.write is None:
        print(tables)
    else:
        write_text(asked.write, written(asked.write.read_text(encoding="utf-8"), tables, asked.part))


if __name__ == "__main__":
    main()
