"""The trainer (§4.2, §5.1): one loop for pre-training, supervised fine-tuning and every preference loss.

Phases are data: a phase names its loss, and the loss says whether losers or a reference are needed. Whatever chance
decides is derived from the run's seed and the epoch and index of the example, so a training that is killed and
started again goes on to the same losses, bit for bit on one CPU. Departures from the released trainer: the phase is a
function of the step (there a counter on one rank), the reference is shown the same dropped captions as the policy, a
dropped caption is the encoded empty one for winner and loser alike, nothing has dropout, and the rate ends at zero.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from milonga.core.config import Phase, Settings
from milonga.core.errors import MilongaError, RecipeError
from milonga.core.store import Run, atomic_dir
from milonga.data.examples import Examples
from milonga.models.denoiser import Denoiser
from milonga.models.lora import add_adapter, save_and_merge
from milonga.training.checkpoint import Checkpoints, State
from milonga.training.curves import Curves, finite, preference_row
from milonga.training.distributed import Ranks
from milonga.training.monitor import alarm, beta_of, ends_early, forget, remember
from milonga.training.phases import check, claim, loss_spec, plan
from milonga.training.reference import Cached, Copy, Reference, Unadapted
from milonga.training.schedule import Step, learning_rate, steps
from milonga.training.step import Found, Passes
from milonga.training.validation import FIELDS, HeldOut

Row = dict[str, Any]
Listen = Callable[[int], dict[str, float]]
# On a CPU, Inductor's change of convolutions' layout lost a quarter of the gradient (torch 2.13, AMD Zen 5); without it
# the gradient is the plain one to 6e-7.
AS_LAID_OUT = {"layout_optimization": False}
PATIENCE = 3  # losses in a row that are not finite before training gives up
log = logging.getLogger(__name__)


def train(
    denoiser: Denoiser,
    examples: Examples,
    phases: Sequence[Phase],
    settings: Settings,
    seed: int,
    folder: Path,
    on_step: Callable[[Row], None] | None = None,
    heldout: Examples | None = None,
    curves: Path | None = None,
    listen: Listen | None = None,
) -> Path:
    """Trains `denoiser.module` in place through all phases; returns `folder`/model, as `denoiser.save` writes it.

    Resumes from the newest good checkpoint in `folder`; once finished, running again returns at once and leaves
    `denoiser` as it is. The network as given, before any phase, is the reference. With `settings.ema` the averaged
    weights are what is saved; with `settings.lora_rank` the adapter is written to `folder`/adapter and merged into
    what is saved.
    Each step's row (see `curves.preference_row`) goes to `curves` (default `folder`/curves.jsonl) and to `on_step`;
    fields that do not apply, or are not finite, are None. `heldout` pairs are judged each epoch. Every
    `settings.listen_every` steps `listen(step)` makes sound with the weights that would be saved; what it returns, such
    as the means of "scorer" and "judge", stands in the row. Under torchrun or `accelerate launch` all processes call
    this alike, and the first one writes.

    Raises RecipeError for an unknown loss or a missing β; DataError for data that does not fit the phases; StoreError
    when `folder` holds another training or is in use; MilongaError when the loss stops being finite.
    """
    check(examples, phases, settings, heldout)
    ranks = Ranks()
    with Run(folder).lock() if ranks.is_main else nullcontext():
        if ranks.is_main:
            claim(folder, plan(denoiser, examples, phases, settings, seed))
        ranks.wait()
        if not (folder / "model").exists():
            training = _Training(denoiser, examples, phases, settings, seed, folder, heldout, ranks, listen)
            training.run(curves or folder / "curves.jsonl", on_step)
        ranks.wait()
    return folder / "model"


class _Training:
    """One training, from the newest checkpoint to the finished network."""

    def __init__(
        self,
        denoiser: Denoiser,
        examples: Examples,
        phases: Sequence[Phase],
        settings: Settings,
        seed: int,
        folder: Path,
        heldout: Examples | None,
        ranks: Ranks,
        listen: Listen | None,
    ) -> None:
        self.denoiser, self.examples, self.phases, self.settings, self.seed = denoiser, examples, phases, settings, seed
        self.folder, self.ranks, self.listen = folder, ranks, listen
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep)
        # Dropout would part the policy from its reference before the first step, and draw from the global stream.
        denoiser.module.eval()
        ranks.to_device(denoiser.module)
        denoiser.prepare(settings.precision, examples.batch([0], 0).winner.shape[1:])
        wanted = heldout is not None or any(loss_spec(phase.loss).needs_reference for phase in phases)
        reference = self._reference() if wanted else None
        network = self._network()
        self.state = _fresh(denoiser, settings)
        self.passes = Passes(denoiser, network, reference, examples, settings, seed, ranks, phases[0])
        self.judge = None
        if heldout is not None and reference is not None:
            self.judge = HeldOut(denoiser, network, reference, heldout, settings, seed)
        if isinstance(reference, Cached):
            self._fill(reference)

    def run(self, path: Path, on_step: Callable[[Row], None] | None) -> None:
        """Takes all steps that are left, then saves the network."""
        note = self.checkpoints.load(self.state) or {"curves": 0}
        curves = Curves(path, note["curves"]) if self.ranks.is_main else None
        try:
            self._steps(curves, on_step)
            if curves is not None:
                curves.flush()
        finally:
            if curves is not None:
                curves.close()
        self._finish()

    def _steps(self, curves: Curves | None, on_step: Callable[[Row], None] | None) -> None:
        memory = self.state.memory
        for step in steps(self.phases, len(self.examples), self.settings, self.seed, self.state.step):
            if memory.get("ended"):
                break
            row = self._take(step)
            self._guard(row, step)
            if curves is not None:
                curves.write(row)
            self._give_up_if_lost(row)
            if self.state.step % self.settings.checkpoint_every == 0:
                size = None if curves is None else curves.flush()
                self.checkpoints.save(self.state, {"phase": step.phase.loss, "curves": size}, self.ranks)
            if on_step is not None and self.ranks.is_main:
                on_step(row)

    def _take(self, step: Step) -> Row:
        """One optimizer step and its row."""
        began, memory = time.perf_counter(), self.state.memory
        beta = beta_of(step.phase, self.settings, memory)
        found = self.passes.gradient(step, beta, memory.get("baseline", 0.0))
        norm = torch.nn.utils.clip_grad_norm_(self.state.averaged(), self.settings.max_grad_norm)
        norm = float(self.ranks.full_tensor(norm))
        rate = learning_rate(step, self.settings)
        skipped = self._update(rate, finite(found.loss + norm) is None)
        seconds = time.perf_counter() - began
        row = {"step": self.state.step, "total": step.total, "epoch": step.epoch + 1, "phase": step.phase.loss}
        row |= {"loss": finite(found.loss), "anchor_error": finite(found.anchor)} | preference_row(found.errors, beta)
        row |= {"beta": beta, "distance": finite(found.distance)}
        row |= {"lr": rate, "grad_norm": finite(norm), "skipped": skipped}
        self._note_baseline(step, found, skipped)
        return row | {"samples_per_second": len(step.indices) / seconds} | self._judged(step) | self._heard()

    def _note_baseline(self, step: Step, found: Found, skipped: bool) -> None:
        """KTO measures the next step's gains from this step's mean −Δ."""
        if loss_spec(step.phase.loss).labels and not skipped:
            errors = found.errors
            apart = [errors.policy_winner - _there(errors.reference_winner)]
            if errors.policy_loser is not None:
                apart.append(errors.policy_loser - _there(errors.reference_loser))
            self.state.memory["baseline"] = -torch.cat(apart).mean().item()

    def _update(self, rate: float, lost: bool) -> bool:
        """Applies the gradient and counts the step; a gradient that is not finite is thrown away and counted."""
        state = self.state
        if not lost:
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            if state.ema is not None:
                state.ema.step(state.averaged())
        state.optimizer.zero_grad(set_to_none=True)
        state.step, state.skipped = state.step + 1, state.skipped + 1 if lost else 0
        return lost

    def _judged(self, step: Step) -> Row:
        """Held-out fields, filled at the end of an epoch from the weights that would be saved now."""
        if self.judge is None or not step.ends_epoch:
            return dict.fromkeys(FIELDS)
        with _as_shipped(self.state):
            return dict(self.judge.judge())

    def _heard(self) -> Row:
        """What the fixed prompts sound like now, where someone listens."""
        every = self.settings.listen_every
        if self.listen is None or not every or self.state.step % every or not self.ranks.is_main:
            return {"heard": None}
        with _as_shipped(self.state), torch.no_grad():
            return {"heard": self.listen(self.state.step)}

    def _guard(self, row: Row, step: Step) -> None:
        """Alarms, and whether to end early; running means are of one phase."""
        memory = self.state.memory
        remember(memory, row)
        row["alarm"], why = alarm(memory, row), ends_early(memory, row, self.settings)
        for text in filter(None, (row["alarm"], why and f"training ends early: {why}")):
            log.log(logging.WARNING if self.ranks.is_main else logging.DEBUG, "step %d: %s", row["step"], text)
        memory["ended"] = float(why is not None)
        if step.ends_phase:
            forget(memory)

    def _give_up_if_lost(self, row: Row) -> None:
        if self.state.skipped >= PATIENCE:
            raise MilongaError(
                f"{PATIENCE} losses in a row were not finite, the last at step {row['step']} ({row['phase']}): train "
                f"anew with a lower learning_rate or a higher beta; last good checkpoint: {self.checkpoints.newest()}"
            )

    def _reference(self) -> Reference:
        """The reference as the settings ask for it; an adapter is put beside the network now."""
        module, settings = self.denoiser.module, self.settings
        if settings.reference == "cached":
            return Cached(self.folder, settings.fixed_draws, len(self.examples))
        return Unadapted(module, settings.precision) if settings.lora_rank else Copy(module, settings.precision)

    def _network(self) -> Any:
        """The network as it is called: with its adapter, checkpointed, compiled, one of many."""
        module, settings = self.denoiser.module, self.settings
        enable_checkpointing: Any = getattr(module, "enable_gradient_checkpointing", None)
        if settings.lora_rank:
            add_adapter(module, self.denoiser.lora_targets, settings.lora_rank, settings.lora_alpha, self.seed)
        if settings.gradient_checkpointing:
            if enable_checkpointing is None:
                raise RecipeError(
                    f"{type(module).__name__} has no gradient checkpointing: set gradient_checkpointing = false"
                )
            enable_checkpointing()
        if settings.compile:
            on_cpu = next(module.parameters()).device.type == "cpu"
            module.compile(dynamic=False, options=AS_LAID_OUT if on_cpu else None)
        return self.ranks.wrap(self.denoiser, settings.sharded)

    def _fill(self, reference: Cached) -> None:
        """The reference's errors for all fixed draws, while the policy still is the reference."""
        losers = self.examples.batch([0], 0).loser is not None
        if self.ranks.is_main or self.settings.sharded:
            settings = self.settings
            reference.fill(
                self.denoiser.module,
                lambda number, rows: self.passes.noisy(number, rows, losers),
                settings.batch_size,
                settings.precision,
            )
        self.ranks.wait()
        if self.judge is not None:
            self.judge.look_up()

    def _finish(self) -> None:
        """Saves the network (its average, where there is one) beside its place, then renames it into place."""
        if self.state.ema is not None:
            self.state.ema.copy_to(self.state.averaged())
        self.ranks.wait()
        if self.ranks.is_main and self.settings.lora_rank:
            with atomic_dir(self.folder / "adapter") as part:
                save_and_merge(self.denoiser.module, part)
        self.state.save_network(self.folder / "model", self.ranks)


def _there(errors: torch.Tensor | None) -> torch.Tensor:
    assert errors is not None
    return errors


def _fresh(denoiser: Denoiser, settings: Settings) -> State:
    """A network before its first step, with AdamW and, if asked for, the average of its weights."""
    from diffusers.training_utils import EMAModel

    parameters = [parameter for parameter in denoiser.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    whole = not any(hasattr(one, "full_tensor") for one in parameters)  # torch has no foreach copies of what is cut up
    ema = EMAModel(parameters, decay=settings.ema, foreach=whole) if settings.ema > 0 else None
    return State(denoiser, optimizer, ema)


@contextmanager
def _as_shipped(state: State) -> Iterator[None]:
    """The network with its averaged weights, where there are any; afterwards with its own again."""
    if state.ema is None:
        yield
        return
    state.ema.store(state.averaged())
    state.ema.copy_to(state.averaged())
    try:
        yield
    finally:
        state.ema.restore(state.averaged())
