"""Whether a training goes wrong, said in plain words while it can still be stopped.

Looks at running means over some twenty steps, kept in `State.memory` and so in every checkpoint: a resumed training
raises the same alarms. What is watched, and why: winners and losers may both get worse while the margin between them
grows; pairs that are far apart teach nothing more; a training scorer may rise while the judge falls.
"""

import math
from typing import Any

from milonga.core.config import Phase, Settings

Row = dict[str, Any]
Memory = dict[str, float]
SPAN = 20  # steps that the running means look back over
SPENT = 0.05  # mean σ(−½βm) under which pairs teach nothing more
REACH = 10.0  # how far auto-β may go from the recipe's β, as a factor either way
WATCHED = ("delta_winner", "winner_worse", "margin", "saturation")


def beta_of(phase: Phase, settings: Settings, memory: Memory) -> float:
    """The step's β: the phase's, or with `auto_beta` the one at which a typical pair's σ(−½βm) is that target.

    After β-DPO (arXiv 2407.08639): β follows the running mean of the margin, within a tenth and ten times the phase's.
    """
    margin = memory.get("margin", 0.0)
    if settings.auto_beta is None or phase.beta == 0 or margin <= 0:
        return phase.beta
    wanted = 2 * math.log(1 / settings.auto_beta - 1) / margin
    return min(max(wanted, phase.beta / REACH), phase.beta * REACH)


def remember(memory: Memory, row: Row) -> None:
    """Moves the running means towards a step's values; another phase begins them anew."""
    if row["margin"] is None:
        return
    seen = memory.get("seen", 0.0)
    share = max(1 / SPAN, 1 / (seen + 1))
    for name in WATCHED:
        memory[name] = (1 - share) * memory.get(name, 0.0) + share * (row[name] or 0.0)
    memory["seen"] = seen + 1


def forget(memory: Memory) -> None:
    """A phase ends: its running means say nothing of the next one."""
    for name in (*WATCHED, "seen", "baseline"):
        memory.pop(name, None)


def alarm(memory: Memory, row: Row) -> str | None:
    """What a person should know after this step; each kind is told once until it has passed."""
    found = {
        "nan": _not_finite(row),
        "winner": _winners_degrade(memory),
        "spent": _spent(memory),
        "judge": _over_optimised(memory, row),
    }
    told = [text for kind, text in found.items() if text and not memory.get(f"told {kind}")]
    for kind, text in found.items():
        if kind != "judge" or row.get("heard"):
            memory[f"told {kind}"] = float(text is not None)
    return "; ".join(told) or None


def ends_early(memory: Memory, row: Row, settings: Settings) -> str | None:
    """Why training should end after this step, in one line; None to go on."""
    rise = memory.get("delta_winner", 0.0)
    if settings.stop_rise is not None and memory.get("seen", 0) >= SPAN and rise > settings.stop_rise:
        return f"the winners' error is {rise:.3g} above the reference's, more than stop_rise = {settings.stop_rise:g}"
    if settings.patience and _waited(memory, row) >= settings.patience:
        return f"held-out accuracy has not risen for {settings.patience} epochs (best {memory['best']:.3f})"
    return None


def _waited(memory: Memory, row: Row) -> float:
    """Epochs since held-out accuracy was at its best."""
    accuracy = row["heldout_accuracy"]
    if accuracy is None:
        return memory.get("waited", 0.0)
    if accuracy > memory.get("best", -1.0):
        memory["best"], memory["waited"] = accuracy, 0.0
    else:
        memory["waited"] = memory.get("waited", 0.0) + 1
    return memory["waited"]


def _not_finite(row: Row) -> str | None:
    return f"the loss was not a finite number at step {row['step']}: the step was skipped" if row["skipped"] else None


def _winners_degrade(memory: Memory) -> str | None:
    rise, worse, margin = (memory.get(name, 0.0) for name in ("delta_winner", "winner_worse", "margin"))
    if memory.get("seen", 0) < SPAN or rise <= 0 or worse <= 0.5 or margin <= 0:
        return None
    return (
        f"the margin grows because losers get worse faster than winners do: {worse:.0%} of the winners are now "
        f"denoised worse than by the reference (by {rise:.3g} on average); lower learning_rate, raise beta, or use "
        "sdpo or crpo"
    )


def _spent(memory: Memory) -> str | None:
    if memory.get("seen", 0) < SPAN or memory["saturation"] >= SPENT:
        return None
    return (
        f"the pairs are told apart already (gradient factor {memory['saturation']:.3f}): more steps mostly "
        "over-optimise; end here, lower beta, or bring new pairs"
    )


def _over_optimised(memory: Memory, row: Row) -> str | None:
    """The training scorer above where it began and the judge below: the scorer is being gamed."""
    heard = row.get("heard") or {}
    if "scorer" not in heard or "judge" not in heard:
        return None
    for name in ("scorer", "judge"):
        memory.setdefault(f"first {name}", heard[name])
    up, down = heard["scorer"] - memory["first scorer"], memory["first judge"] - heard["judge"]
    if up <= 0 or down <= 0:
        return None
    return (
        f"the training scorer rose by {up:.3f} on the fixed prompts while the judge fell by {down:.3f}: the model "
        "learns the scorer and not the sound; stop, or train for fewer epochs"
    )
