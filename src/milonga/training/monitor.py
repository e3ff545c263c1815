"""The training log, and alerts when a training goes wrong while it can still be stopped.

A row of the log is made of a step's errors. Alerts look at running means over some twenty steps, which every
checkpoint holds: a resumed training raises the same alerts. Watched are three ways to fail: winners and losers both get
worse while the margin between them grows; the pairs are so far apart that they teach nothing more; the training scorer
rises while the judge falls.
"""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch

from milonga.core.config import Phase, Settings
from milonga.core.store import cannot_write
from milonga.maths.losses import LOSSES, Errors, deltas, implicit_accuracy, preference_margin

Row = dict[str, Any]
MonitorState = dict[str, float]
SPAN = 20  # steps that the running means look back over
SATURATED = 0.05  # mean σ(−½βm) below which pairs teach nothing more
GRAD_RATE = 0.1  # of the running quantile of gradient norms, in their logarithm
BETA_RANGE = 10.0  # how far auto-β may go from the phase's β, as a factor either way
WATCHED = ("delta_winner", "winner_worse", "margin", "saturation")
PREFERENCE_FIELDS = (
    "winner_error", "loser_error", "delta_winner", "delta_loser", "margin", "margin_p10", "margin_p50", "margin_p90",
    "accuracy", "winner_worse", "saturation", "safeguard",
)  # fmt: skip
log = logging.getLogger(__name__)


class TrainingLog:
    """A file of JSON lines that a resumed training continues exactly where its checkpoint left it."""

    def __init__(self, path: Path, size: int, writes: bool = True) -> None:
        """Opens `path` for appending after its first `size` bytes; what a killed run wrote beyond them is cut off.

        Without `writes` (on all ranks but the main one) nothing is opened or written.
        """
        self._file, self._path = None, path
        if writes:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab", buffering=0)
            except OSError as error:
                raise cannot_write(path, error) from error
            present = path.stat().st_size
            if present < size:
                log.warning("%s is shorter than its checkpoint says: the log has a gap", path)
            self._file.truncate(min(size, present))

    def write(self, row: Row) -> None:
        """Appends one row, which survives a crash of this process; StoreError where the disk refuses."""
        left = json.dumps(row, allow_nan=False).encode() + b"\n" if self._file is not None else b""
        try:
            while left and self._file is not None:  # a disk that becomes full may take a part
                left = left[self._file.write(left) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def flush(self) -> int | None:
        """Puts all rows on disk; returns their bytes, which a checkpoint has to remember (None: nothing is written)."""
        if self._file is None:
            return None
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def preference_row(errors: Errors | None, beta: float) -> Row:
    """The means of a step's errors: fields that need losers or a reference are None without them (all without errors).

    Δw and Δl are separate, since both may rise while the margin grows; with the margin's quantiles, the share of
    winners that got worse, and σ(−½βm), the factor of DPO's gradient: near 0 the pairs teach nothing more. `safeguard`
    is SDPO's λ, below 1 where the loser's gradient was scaled down.
    """
    row: dict[str, Any] = dict.fromkeys(PREFERENCE_FIELDS)
    if errors is None:
        return row
    row["winner_error"] = errors.policy_winner.mean().item()
    if errors.policy_loser is not None:
        row["loser_error"] = errors.policy_loser.mean().item()
    if errors.reference_loser is not None:
        winner, loser = deltas(errors)
        margin = preference_margin(errors)
        quantiles = torch.quantile(margin, margin.new_tensor([0.1, 0.5, 0.9])).tolist()
        row |= {"delta_winner": winner.mean().item(), "delta_loser": loser.mean().item()}
        row["margin"] = margin.mean().item()
        row |= dict(zip(("margin_p10", "margin_p50", "margin_p90"), quantiles, strict=True))
        row["accuracy"] = implicit_accuracy(errors).item()
        row["winner_worse"] = (winner > 0).float().mean().item()
        row["saturation"] = torch.sigmoid(-0.5 * beta * margin).mean().item()
    if errors.desirable is not None and errors.reference_winner is not None:
        # Liked clips stand for winners, disliked ones for losers; without pairs there are no margins.
        delta, liked = errors.policy_winner - errors.reference_winner, errors.desirable.bool()
        parts = {"delta_winner": delta[liked], "delta_loser": delta[~liked]}
        row |= {name: part.mean().item() if len(part) else None for name, part in parts.items()}
        row["winner_worse"] = (delta[liked] > 0).float().mean().item() if liked.any() else None
    if errors.safeguard is not None:
        row["safeguard"] = errors.safeguard.mean().item()
    return {name: finite(value) for name, value in row.items()}


def finite(value: float | None) -> float | None:
    """The value, or None where it is no number that JSON can hold."""
    return value if value is not None and abs(value) < float("inf") else None


def auto_beta(phase: Phase, settings: Settings, monitor: MonitorState) -> float:
    """The step's β: the phase's, or with `settings.auto_beta` the one at which a typical pair's σ(−½βm) is that target.

    After β-DPO (arXiv 2407.08639): β follows the running mean of the margin, within a tenth and ten times the phase's.
    """
    margin = monitor.get("margin", 0.0)
    if settings.auto_beta is None or phase.beta == 0 or margin <= 0:
        return phase.beta
    beta = 2 * math.log(1 / settings.auto_beta - 1) / margin
    return min(max(beta, phase.beta / BETA_RANGE), phase.beta * BETA_RANGE)


def grad_limit(phase: Phase, settings: Settings, monitor: MonitorState) -> float:
    """The norm that a step's gradient is clipped to: `max_grad_norm`, or of a phase that compares with a reference or
    an old policy, or samples its clips, the running quantile `grad_clip_quantile` of the norms so far (no limit in its
    first step).
    """
    spec = LOSSES.get(phase.loss)
    compares = spec is not None and (spec.needs_reference or spec.needs_old or spec.samples)
    if settings.grad_clip_quantile is None or not compares:
        return settings.max_grad_norm
    return monitor.get("grad_limit", math.inf)


def update_grad_limit(monitor: MonitorState, settings: Settings, norm: float) -> None:
    """Moves the running quantile of gradient norms towards a step's norm (Robbins and Monro, on the logarithm)."""
    if settings.grad_clip_quantile is None or not 0 < norm < math.inf:
        return
    limit = monitor.get("grad_limit", norm)
    move = GRAD_RATE * (settings.grad_clip_quantile - (norm <= limit))
    monitor["grad_limit"] = limit * math.exp(move)


def update_running_means(monitor: MonitorState, row: Row) -> None:
    """Moves the running means towards a step's values; labelled clips have neither margin nor saturation."""
    known = {name: row[name] for name in WATCHED if row[name] is not None}
    if not known:
        return
    seen = monitor.get("seen", 0.0)
    share = max(1 / SPAN, 1 / (seen + 1))
    for name, value in known.items():
        monitor[name] = (1 - share) * monitor.get(name, 0.0) + share * value
    monitor["seen"] = seen + 1


def reset(monitor: MonitorState) -> None:
    """Drops the running means and the best accuracy at the end of a phase: they say nothing about the next one."""
    for name in (*WATCHED, "seen", "baseline", "grad_limit", "best", "waited"):
        monitor.pop(name, None)


def alert(monitor: MonitorState, row: Row) -> str | None:
    """What a person should know after this step; each kind is reported once until it has passed."""
    texts: dict[str, str | None] = {"nan": None, "winner": None, "saturated": None, "judge": None}
    if row["skipped"]:
        texts["nan"] = f"the loss was not a finite number at step {row['step']}: the step was skipped"
    rise, worse, margin = (monitor.get(name, 0.0) for name in ("delta_winner", "winner_worse", "margin"))
    if monitor.get("seen", 0) >= SPAN and rise > 0 and worse > 0.5 and margin > 0:
        texts["winner"] = (
            f"the margin grows because losers get worse faster than winners do: {worse:.0%} of the winners are now "
            f"denoised worse than by the reference (by {rise:.3g} on average); lower learning_rate, raise beta, or use "
            "sdpo or crpo"
        )
    if monitor.get("seen", 0) >= SPAN and monitor.get("saturation", 1.0) < SATURATED:
        texts["saturated"] = (
            f"the model already separates the pairs (gradient factor {monitor['saturation']:.3f}): more steps mostly "
            "over-optimise; stop here, lower beta, or bring new pairs"
        )
    samples = row.get("samples") or {}
    if "scorer" in samples and "judge" in samples:
        for name in ("scorer", "judge"):
            monitor.setdefault(f"first {name}", samples[name])
        up, down = samples["scorer"] - monitor["first scorer"], monitor["first judge"] - samples["judge"]
        if up > 0 and down > 0:
            texts["judge"] = (
                f"the training scorer rose by {up:.3f} on the fixed prompts while the judge fell by {down:.3f}: the "
                "model learns the scorer and not the sound; stop, or train for fewer epochs"
            )
    new = [text for kind, text in texts.items() if text and not monitor.get(f"reported {kind}")]
    for kind, text in texts.items():
        if kind != "judge" or samples:
            monitor[f"reported {kind}"] = float(text is not None)
    return "; ".join(new) or None


def should_stop(monitor: MonitorState, row: Row, settings: Settings) -> str | None:
    """Why training should stop after this step, in one line; None to go on."""
    rise, limit = monitor.get("delta_winner", 0.0), settings.early_stop_winner_error
    if limit is not None and monitor.get("seen", 0) >= SPAN and rise > limit:
        return f"the winners' error is {rise:.3g} above the reference's, more than early_stop_winner_error = {limit:g}"
    if not settings.patience:
        return None
    accuracy = row["val_accuracy"]
    if accuracy is not None and accuracy > monitor.get("best", -1.0):
        monitor["best"], monitor["waited"] = accuracy, 0.0
    elif accuracy is not None:
        monitor["waited"] = monitor.get("waited", 0.0) + 1
    if monitor.get("waited", 0.0) >= settings.patience:
        return f"validation accuracy has not risen for {settings.patience} epochs (best {monitor['best']:.3f})"
    return None
