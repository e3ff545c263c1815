"""The trainer (§4.2, §5.1): one loop for pre-training, supervised fine-tuning and every preference loss.

Phases are data: a phase names its loss, and the loss says whether losers or a reference are needed. Whatever chance
decides is derived from the run's seed and the epoch and index of the example, so a training that is killed and
started again goes on to the same losses, bit for bit on one CPU. Departures from the released trainer: the phase is a
function of the step (there a counter on one rank), the reference is shown the same dropped captions as the policy, a
dropped caption is the encoded empty one for winner and loser alike, nothing has dropout, and the rate ends at zero.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milonga.core.errors import MilongaError
from milonga.core.settings import Phase, Settings
from milonga.core.store import Run
from milonga.maths.losses import Errors
from milonga.maths.noise import seeded
from milonga.stages.checkpoints import Checkpoints, State, aside
from milonga.stages.curves import Curves, finite, preference_row
from milonga.stages.denoise import Noisy, Trainable, as_errors, draw, noised, with_reference
from milonga.stages.heldout import FIELDS, HeldOut
from milonga.stages.latents import Batch, Examples
from milonga.stages.phases import check, claim, loss_spec, plan
from milonga.stages.steps import Step, learning_rate, steps

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Row = dict[str, Any]
PATIENCE = 3  # losses in a row that are not finite before training gives up


def train(
    model: Trainable,
    examples: Examples,
    phases: Sequence[Phase],
    settings: Settings,
    seed: int,
    folder: Path,
    on_step: Callable[[Row], None] | None = None,
    heldout: Examples | None = None,
    curves: Path | None = None,
) -> Path:
    """Trains `model.unet` in place through all phases; returns `folder`/unet, as `unet.save_pretrained` lays it out.

    Resumes from the newest good checkpoint in `folder`; once finished, running again returns at once and leaves
    `model` as it is. The U-Net as given, before any phase, is the reference. With `settings.ema` the averaged weights
    are what is saved. Each step's row (see `curves.preference_row`) goes to `curves` (default `folder`/curves.jsonl)
    and to `on_step`; fields that do not apply, or are not finite, are None. `heldout` pairs are judged each epoch.

    Raises RecipeError for an unknown loss or a missing β; DataError for data that does not fit the phases; StoreError
    when `folder` holds another training or is in use; MilongaError when the loss stops being finite.
    """
    check(examples, phases, settings, heldout)
    with Run(folder).lock():
        claim(folder, plan(model, examples, phases, settings, seed))
        if not (folder / "unet").exists():
            training = _Training(model, examples, phases, settings, seed, folder, heldout)
            training.run(curves or folder / "curves.jsonl", on_step)
    return folder / "unet"


class _Training:
    """One training, from the newest checkpoint to the finished U-Net."""

    def __init__(
        self,
        model: Trainable,
        examples: Examples,
        phases: Sequence[Phase],
        settings: Settings,
        seed: int,
        folder: Path,
        heldout: Examples | None,
    ) -> None:
        self.model, self.examples, self.phases, self.settings, self.seed = model, examples, phases, settings, seed
        self.folder, self.checkpoints = folder, Checkpoints(folder / "checkpoints", settings.keep)
        # Dropout would part the policy from its reference before the first step, and draw from the global stream.
        model.unet.eval()
        wanted = heldout is not None or any(loss_spec(phase.loss).needs_reference for phase in phases)
        self.reference = _frozen(model.unet) if wanted else None
        self.state = _fresh(model.unet, settings)
        self.judge = None
        if heldout is not None and self.reference is not None:
            self.judge = HeldOut(model, self.reference, heldout, settings, seed)

    def run(self, path: Path, on_step: Callable[[Row], None] | None) -> None:
        """Takes all steps that are left, then saves the U-Net."""
        note = self.checkpoints.load(self.state) or {"curves": 0}
        curves = Curves(path, note["curves"])
        try:
            for step in steps(self.phases, len(self.examples), self.settings, self.seed, self.state.step):
                row = self._take(step)
                curves.write(row)
                self._give_up_if_lost(row)
                if self.state.step % self.settings.checkpoint_every == 0:
                    self.checkpoints.save(self.state, {"phase": step.phase.loss, "curves": curves.flush()})
                if on_step is not None:
                    on_step(row)
            curves.flush()
        finally:
            curves.close()
        self._finish()

    def _take(self, step: Step) -> Row:
        """One optimizer step and its row."""
        began = time.perf_counter()
        errors, loss, anchor = self._gradient(step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.unet.parameters(), self.settings.max_grad_norm))
        rate = learning_rate(step, self.settings)
        skipped = self._update(rate, finite(loss + norm) is None)
        seconds = time.perf_counter() - began
        row = {"step": self.state.step, "total": step.total, "epoch": step.epoch + 1, "phase": step.phase.loss}
        row |= {"loss": finite(loss), "anchor_error": finite(anchor)} | preference_row(errors, step.phase.beta)
        row |= {"lr": rate, "grad_norm": finite(norm), "skipped": skipped}
        return row | {"samples_per_second": len(step.indices) / seconds} | self._judged(step)

    def _gradient(self, step: Step) -> tuple[Errors, float, float | None]:
        """Adds up the gradient of a step's mean loss, batch by batch; its errors, that loss, and the anchors' error."""
        size, found, losses, anchors = self.settings.batch_size, [], [], []
        for first in range(0, len(step.indices), size):
            rows = step.indices[first : first + size]
            errors, loss = self._pairs(step, rows)
            found.append(errors)
            losses.append(loss)
            if self.settings.anchor > 0:
                anchors.append(self._anchors(step, first, len(rows)))
        anchor = torch.cat(anchors).mean().item() if anchors else None
        return _join(found), torch.cat(losses).mean().item() + self.settings.anchor * (anchor or 0.0), anchor

    def _pairs(self, step: Step, rows: Sequence[int]) -> tuple[Errors, Tensor]:
        """Errors and losses (B,) of one batch, whose gradient is added."""
        spec, device = loss_spec(step.phase.loss), self.model.unet.device
        batch = self.examples.batch(rows, step.epoch).to(device)
        noisy = self._noised(batch, [("pair", step.epoch, row) for row in rows], spec.needs_loser)
        errors = as_errors(noisy.errors(self.model.unet), spec.needs_loser)
        if spec.needs_reference and self.reference is not None:
            errors = with_reference(errors, noisy, self.reference)
        losses = spec.function(errors, step.phase.beta)
        (losses.sum() / len(step.indices)).backward()
        return errors, losses.detach()

    def _anchors(self, step: Step, first: int, count: int) -> Tensor:
        """Errors (B,) on real clips, whose weighted gradient is added: BATON's pre-training term."""
        chosen = torch.randint(
            self.examples.anchors, (len(step.indices),), generator=seeded(self.seed, "anchors", step.number)
        )
        rows = chosen[first : first + count].tolist()
        batch = self.examples.anchor_batch(rows, step.epoch).to(self.model.unet.device)
        keys = [("anchor", step.number, first + place) for place in range(count)]
        errors = self._noised(batch, keys, losers=False).errors(self.model.unet)
        (self.settings.anchor * errors.sum() / len(step.indices)).backward()
        return errors.detach()

    def _noised(self, batch: Batch, keys: Sequence[tuple], losers: bool) -> Noisy:
        total = len(self.model.alphas_cumprod)
        draws = draw(batch.winner.shape[1:], keys, self.seed, total, self.settings)
        return noised(self.model, batch, draws, losers, self.settings.snr_gamma)

    def _update(self, rate: float, lost: bool) -> bool:
        """Applies the gradient and counts the step; a gradient that is not finite is thrown away and counted."""
        state = self.state
        if not lost:
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
            if state.ema is not None:
                state.ema.step(self.model.unet.parameters())
        state.optimizer.zero_grad(set_to_none=True)
        state.step, state.skipped = state.step + 1, state.skipped + 1 if lost else 0
        return lost

    def _judged(self, step: Step) -> Row:
        """Held-out fields, filled at the end of an epoch from the weights that would be saved now."""
        if self.judge is None or not step.ends_epoch:
            return dict.fromkeys(FIELDS)
        with _as_shipped(self.state):
            return dict(self.judge.judge())

    def _give_up_if_lost(self, row: Row) -> None:
        if self.state.skipped >= PATIENCE:
            raise MilongaError(
                f"{PATIENCE} losses in a row were not finite, the last at step {row['step']} ({row['phase']}): train "
                f"anew with a lower learning_rate or a higher beta; last good checkpoint: {self.checkpoints.newest()}"
            )

    def _finish(self) -> None:
        """Saves the U-Net (its average, where there is one) beside its place, then renames it into place."""
        if self.state.ema is not None:
            self.state.ema.copy_to(self.model.unet.parameters())
        with aside(self.folder / "unet") as part:
            self.model.unet.save_pretrained(part)


def _frozen(unet: "UNet2DConditionModel") -> "UNet2DConditionModel":
    """A copy that never changes: the reference."""
    return copy.deepcopy(unet).eval().requires_grad_(False)


def _fresh(unet: "UNet2DConditionModel", settings: Settings) -> State:
    """A U-Net before its first step, with AdamW and, if asked for, the average of its weights."""
    from diffusers.training_utils import EMAModel

    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    ema = EMAModel(unet.parameters(), decay=settings.ema, foreach=True) if settings.ema > 0 else None
    return State(unet, optimizer, ema)


@contextmanager
def _as_shipped(state: State) -> Iterator[None]:
    """The U-Net with its averaged weights, where there are any; afterwards with its own again."""
    if state.ema is None:
        yield
        return
    state.ema.store(state.unet.parameters())
    state.ema.copy_to(state.unet.parameters())
    try:
        yield
    finally:
        state.ema.restore(state.unet.parameters())


def _join(parts: Sequence[Errors]) -> Errors:
    """The error vectors of several batches, end to end, without their gradients."""

    def joined(name: str) -> Tensor | None:
        vectors = [getattr(part, name) for part in parts]
        return None if vectors[0] is None else torch.cat(vectors).detach()

    winner = torch.cat([part.policy_winner for part in parts]).detach()
    return Errors(winner, joined("policy_loser"), joined("reference_winner"), joined("reference_loser"))
