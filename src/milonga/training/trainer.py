"""The trainer (§4.2, §5.1): one loop for pre-training, supervised fine-tuning and every preference loss.

From the outside in: a training is a list of *phases*, each a loss with its epochs; an *epoch* is one pass over the
examples; a *step* is one update by the optimizer from `batch_size × gradient_accumulation_steps` examples; a
*checkpoint* holds all that a step changes. Phase, epoch, examples and learning rate are functions of the step's number
(`schedule`), and all random draws derive from the run's seed and the example, so a training that is killed and run
again reaches the same losses, bit for bit on one CPU.

Departures from the released trainer: the phase is a function of the step (there a counter on one rank), the reference
gets the same dropped captions as the policy, a dropped caption is the encoded empty one for winner and loser alike,
nothing has dropout, and the learning rate ends at zero.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from milonga.core.config import Phase, Settings
from milonga.core.errors import MilongaError, RecipeError, brief
from milonga.core.store import Run, atomic_dir
from milonga.data.examples import Examples
from milonga.maths.devices import AUTO
from milonga.models.denoiser import Denoiser, module_hash
from milonga.training.checkpoint import Checkpoints, TrainState
from milonga.training.distil import DistilStep
from milonga.training.distributed import Ranks
from milonga.training.draft import DraftStep, check_scorers
from milonga.training.monitor import (
    TrainingLog,
    alert,
    auto_beta,
    finite,
    grad_limit,
    preference_row,
    reset,
    should_stop,
    update_grad_limit,
    update_running_means,
)
from milonga.training.reference import (
    AdapterDisabled,
    CachedReference,
    FrozenCopy,
    Reference,
    add_adapter,
    save_and_merge,
)
from milonga.training.schedule import (
    Step,
    check_plan,
    check_training,
    count_epochs,
    learning_rate,
    loss_spec,
    steps,
    training_plan,
)
from milonga.training.step import StepOutput, TrainStep
from milonga.training.validation import FIELDS, Validation

Row = dict[str, Any]
# On a CPU, Inductor's change of convolutions' layout lost a quarter of the gradient (torch 2.13, AMD Zen 5); without it
# the gradient agrees with the plain one to 6e-7.
INDUCTOR_ON_CPU = {"layout_optimization": False}
MAX_SKIPPED = 3  # losses in a row that are not finite before training gives up
log = logging.getLogger(__name__)


class TrainerCallback:
    """Hooks into a training, called on the main process; a subclass overrides those that it needs."""

    def on_step(self, row: Row) -> None:
        """After every step, with its row of the training log."""

    def on_epoch_end(self, row: Row) -> None:
        """After an epoch's last step, with its row."""

    def on_save(self, folder: Path) -> None:
        """After a checkpoint, or the finished network, has been written to `folder`."""


@dataclass
class Trainer:
    """Trains `denoiser.module` in place through all phases, in `folder`.

    The reference is the network as given, before any phase, or `ref_model`'s. With `settings.ema` the averaged weights
    are what is saved; with `settings.lora_rank` the adapter is written to `folder`/adapter and merged into what is
    saved. Each step's row (see `monitor.preference_row`) goes to `log_path` (default `folder`/curves.jsonl) and to the
    callbacks; fields that do not apply, or are not finite, are None. `val` pairs are evaluated at the end of each
    epoch. Every `settings.sample_every` steps (0: at the end of each epoch) `sample(step)` is called with the weights
    that would be saved; the numbers it returns, such as the means of "scorer" and "judge", are the row's "samples".
    `scorers` reward the clips that a loss such as `draft` samples: `DifferentiableScorer`s.
    Under torchrun or `accelerate launch` all processes do this alike, and the main one writes.
    """

    denoiser: Denoiser
    examples: Examples
    phases: Sequence[Phase]
    settings: Settings
    seed: int
    folder: Path
    val: Examples | None = None
    log_path: Path | None = None
    sample: Callable[[int], dict[str, float]] | None = None
    callbacks: Sequence[TrainerCallback] = ()
    ref_model: Denoiser | None = None
    scorers: Sequence[Any] = ()
    device: Any = AUTO

    def run(self) -> Path:
        """Takes all steps that are left; returns `folder`/model, as `denoiser.save` writes it.

        Resumes from the newest intact checkpoint in `folder`; a finished training returns at once and leaves the
        denoiser as it is. Raises RecipeError for an unknown loss or a missing β; DataError for data that does not fit
        the phases; StoreError when `folder` holds another training or is in use; MilongaError when the loss stops being
        finite.
        """
        check_training(self.examples, self.phases, self.settings, self.val)
        check_scorers(self.scorers, self.phases, self.settings)
        if self.settings.fsdp and self.sample is not None:  # one rank alone would wait for the others' shards
            raise RecipeError(
                "a network sharded over ranks cannot be sampled: leave out sample_every and compute_metrics, or fsdp"
            )
        ranks, settings, finished = Ranks(self.device), self.settings, self.folder / "model"
        with Run(self.folder).lock() if ranks.is_main else nullcontext():
            if ranks.is_main:
                check_plan(self.folder, self._plan())
            ranks.wait()
            if finished.exists():
                return finished

            train_step, validation = self._prepare(ranks)
            state = TrainState.new(self.denoiser, settings)
            train_step.averaged_weights = partial(_averaged_weights, state)
            checkpoints = Checkpoints(self.folder / "checkpoints", settings.save_total_limit)
            note = checkpoints.load(state) or {"curves": 0}
            training_log = TrainingLog(self.log_path or self.folder / "curves.jsonl", note["curves"], ranks.is_main)
            checkpointed = settings.gradient_checkpointing != "auto"
            with closing(training_log):
                for step in steps(self.phases, len(self.examples), settings, self.seed, state.step):
                    if state.monitor.get("ended"):
                        break

                    # Gradient, clipping, update. A loss that is not finite updates nothing.
                    start = time.perf_counter()
                    beta = auto_beta(step.phase, settings, state.monitor)
                    output: StepOutput | None = None
                    while output is None:
                        try:
                            output = train_step.run(step, beta, state.monitor.get("baseline", 0.0))
                        except torch.OutOfMemoryError as error:  # whose frames hold memory until this block ends
                            self._save_memory(brief(error), checkpointed or ranks.world > 1, state)
                            checkpointed = True
                    parameters = list(state.trained().values())
                    limit = grad_limit(step.phase, settings, state.monitor)
                    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
                    grad_norm, lr = float(ranks.full_tensor(norm)), learning_rate(step, settings)
                    update_grad_limit(state.monitor, settings, grad_norm)
                    skipped = finite(output.loss + grad_norm) is None
                    state.update(lr, skipped)
                    if loss_spec(step.phase.loss).labels and not skipped:
                        state.monitor["baseline"] = _baseline(output)
                    speed = len(step.indices) / (time.perf_counter() - start)

                    # The step's row of the log, validation and samples included, and what the monitor says of it.
                    row = {"step": state.step, "total": step.total, "epoch": step.epoch + 1, "phase": step.phase.loss}
                    row |= {"loss": finite(output.loss), "prior_error": finite(output.prior)}
                    row |= preference_row(output.errors, beta) | {"beta": beta, "distance": finite(output.distance)}
                    row |= {"reward": finite(output.reward), "scores": output.scores}
                    row |= {"lr": lr, "grad_norm": finite(grad_norm), "skipped": skipped, "samples_per_second": speed}
                    row |= self._validate(step, state, validation) | self._sample(step, state, ranks)
                    row["alert"] = self._monitor(row, step, state, ranks)
                    training_log.write(row)
                    if state.skipped >= MAX_SKIPPED:
                        raise MilongaError(
                            f"{MAX_SKIPPED} losses in a row were not finite, the last at step {state.step} "
                            f"({row['phase']}): train again with a lower learning_rate or a higher beta; last good "
                            f"checkpoint: {checkpoints.newest()}"
                        )

                    if state.step % settings.checkpoint_every == 0:
                        size = training_log.flush()
                        saved = checkpoints.save(state, {"phase": step.phase.loss, "curves": size}, ranks)
                        self._call("on_save", saved, ranks)
                    self._call("on_step", row, ranks)
                    if step.ends_epoch:
                        self._call("on_epoch_end", row, ranks)
                training_log.flush()
            self._save(state, ranks, finished)
            ranks.wait()
        return finished

    def _plan(self) -> dict[str, Any]:
        """All that decides the numbers of this training."""
        facts = training_plan(self.denoiser, self.examples, self.phases, self.settings, self.seed)
        facts |= {"scorers": [scorer.name for scorer in self.scorers]} if self.scorers else {}
        return facts if self.ref_model is None else facts | {"reference": module_hash(self.ref_model.module)}

    def _prepare(self, ranks: Ranks) -> tuple[TrainStep, Validation | None]:
        """Puts the network and its reference in place: device, precision, adapter, compilation, ranks."""
        denoiser, module, settings = self.denoiser, self.denoiser.module, self.settings
        # Dropout would part the policy from its reference before the first step, and draw from the global stream.
        module.eval()
        ranks.to_device(module)
        first = self.examples.batch([0], 0)
        latents = first.winner[0] if first.advantages is None else first.winner[0, 0]
        denoiser.prepare(settings.precision, latents.shape)

        # The reference comes before the adapter: it is a copy of the network as given.
        reference: Reference | None = None
        compared = [loss_spec(phase.loss) for phase in self.phases]
        samples = any(spec.samples for spec in compared)
        distils = any(spec.distils for spec in compared)
        guarded = distils or (samples and settings.trust_region > 0)
        for network in denoiser.others if samples else ():  # clips pass the decoder in training
            ranks.to_device(network)
        if self.val is not None or guarded or any(spec.needs_reference or spec.needs_old for spec in compared):
            reference = self._reference(ranks)
        if settings.gradient_checkpointing is True:
            enable = self._checkpointing()
            if enable is None:
                raise RecipeError(f"{type(module).__name__} has no gradient checkpointing: turn it off")
            enable()
        if settings.lora_rank:
            add_adapter(module, denoiser.lora_targets, settings.lora_rank, settings.lora_alpha, self.seed)
        if settings.compile:
            on_cpu = next(module.parameters()).device.type == "cpu"
            module.compile(dynamic=False, options=INDUCTOR_ON_CPU if on_cpu else None)
        network = ranks.wrap(denoiser, settings.fsdp)

        parts = (denoiser, network, reference, self.examples, settings, self.seed, ranks, self.phases[0])
        if samples:
            train_step: TrainStep = DraftStep(*parts, self.scorers, self.folder)
        else:
            train_step = DistilStep(*parts) if distils else TrainStep(*parts)
        validation = None
        if self.val is not None and reference is not None:
            validation = Validation(denoiser, network, reference, self.val, settings, self.seed)
        if isinstance(reference, CachedReference):  # filled while the policy still is the reference
            original = module if self.ref_model is None else self.ref_model.module
            if ranks.is_main or settings.fsdp:
                losers = self.examples.batch([0], 0).loser is not None
                reference.fill(original, partial(train_step.noisy_batch, losers=losers), settings)
            ranks.wait()
            if validation is not None:
                validation.cache_reference(original)
        return train_step, validation

    def _checkpointing(self) -> Callable[[], None] | None:
        """What turns on gradient checkpointing, by which a backward pass computes activations again; None: nothing."""
        module, name = self.denoiser.module, "enable_gradient_checkpointing"
        if not getattr(module, "_supports_gradient_checkpointing", True):  # diffusers' mark
            return None
        return getattr(self.denoiser, name, getattr(module, name, None))

    def _save_memory(self, cause: str, tried: bool, state: TrainState) -> None:
        """Turns on gradient checkpointing, which changes no number, so that a step can be done again in less memory.

        Raises MilongaError where that was `tried`, or may not be.
        """
        enable = self._checkpointing()
        if enable is None or tried:
            more = "" if enable is None else ", with gradient_checkpointing = true"
            raise MilongaError(
                f"memory is short at step {state.step + 1}, {cause}: lower batch_size and raise "
                f"gradient_accumulation_steps by the same factor{more}"
            )
        log.warning("memory is short at step %d: gradient checkpointing is on from here", state.step + 1)
        enable()
        for value in state.trained().values():
            value.grad = None

    def _reference(self, ranks: Ranks) -> Reference:
        """The reference as the settings ask for it."""
        settings, module = self.settings, self.denoiser.module
        if self.ref_model is not None:
            module = self.ref_model.module.eval()
            ranks.to_device(module)
        if settings.reference == "cached":
            count = len(self.examples)
            passes = settings.noise_samples_per_pair or count_epochs(self.phases, count, settings)
            return CachedReference(self.folder, passes, count)
        if settings.lora_rank and self.ref_model is None:
            return AdapterDisabled(module, settings.precision)
        return FrozenCopy(module, settings.precision)

    def _validate(self, step: Step, state: TrainState, validation: Validation | None) -> Row:
        """Validation fields, filled at the end of an epoch from the weights that would be saved now."""
        if validation is None or not step.ends_epoch:
            return dict.fromkeys(FIELDS)
        with _averaged_weights(state):
            return validation.evaluate()

    def _sample(self, step: Step, state: TrainState, ranks: Ranks) -> Row:
        """What `sample` measures now, by the weights that would be saved."""
        every = self.settings.sample_every
        due = state.step % every == 0 if every else step.ends_epoch
        if self.sample is None or not due or not ranks.is_main:
            return {"samples": None}
        with _averaged_weights(state), torch.no_grad():
            return {"samples": self.sample(state.step)}

    def _monitor(self, row: Row, step: Step, state: TrainState, ranks: Ranks) -> str | None:
        """The step's alert, and whether to stop early; running means belong to one phase."""
        monitor = state.monitor
        update_running_means(monitor, row)
        text, reason = alert(monitor, row), should_stop(monitor, row, self.settings)
        for line in filter(None, (text, reason and f"training stops early: {reason}")):
            log.log(logging.WARNING if ranks.is_main else logging.DEBUG, "step %d: %s", row["step"], line)
        monitor["ended"] = float(reason is not None)
        if step.ends_phase:
            reset(monitor)
        return text

    def _call(self, hook: str, value: Any, ranks: Ranks) -> None:
        """Calls a hook of every callback that has it."""
        for callback in self.callbacks if ranks.is_main else ():
            getattr(callback, hook, lambda _: None)(value)

    def _save(self, state: TrainState, ranks: Ranks, folder: Path) -> None:
        """Saves the network (its average, where there is one) beside its place, then renames it into place."""
        module, weights = self.denoiser.module, None
        if state.ema is not None:
            state.ema.copy_to(list(state.trained().values()))
        ranks.wait()
        if ranks.is_main and self.settings.lora_rank:
            with atomic_dir(self.folder / "adapter") as part:
                save_and_merge(module, part)
        if ranks.is_sharded(module):  # gathered one by one, and all of them held by the main process alone
            gathered = ((name, ranks.full_tensor(value)) for name, value in module.state_dict().items())
            weights = {name: value.cpu() for name, value in gathered if ranks.is_main}
        if ranks.is_main:
            with atomic_dir(folder) as part:
                self.denoiser.save(part, weights)
        self._call("on_save", folder, ranks)


def train(
    denoiser: Denoiser,
    examples: Examples,
    phases: Sequence[Phase],
    settings: Settings,
    seed: int,
    folder: Path,
    on_step: Callable[[Row], None] | None = None,
    **more: Any,
) -> Path:
    """`Trainer(…).run()` with a function in the place of callbacks; `more` are the trainer's further fields."""
    callbacks = [*more.pop("callbacks", ()), *([OnStep(on_step)] if on_step else [])]
    return Trainer(denoiser, examples, phases, settings, seed, folder, callbacks=callbacks, **more).run()


class OnStep(TrainerCallback):
    """A callback that calls a function with the log row of every step."""

    def __init__(self, function: Callable[[Row], None]) -> None:
        self._function = function

    def on_step(self, row: Row) -> None:
        """Calls the function."""
        self._function(row)


def _baseline(output: StepOutput) -> float:
    """The mean of −Δ over a step's clips, from which KTO measures the gains of the next step."""
    errors = output.errors
    assert errors is not None
    deltas = [errors.policy_winner - errors.reference_winner]  # pyright: ignore[reportOperatorIssue]
    if errors.policy_loser is not None:
        deltas.append(errors.policy_loser - errors.reference_loser)  # pyright: ignore[reportOperatorIssue]
    return -torch.cat(deltas).mean().item()


@contextmanager
def _averaged_weights(state: TrainState) -> Iterator[None]:
    """The network with its averaged weights, where there are any; afterwards with its own again."""
    if state.ema is None:
        yield
        return
    parameters = list(state.trained().values())
    state.ema.store(parameters)
    state.ema.copy_to(parameters)
    try:
        yield
    finally:
        state.ema.restore(parameters)
