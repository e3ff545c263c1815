"""The parts of a recipe that stages take as arguments: one strategy, one threshold, one training phase, the trainer.

They stand on floor 0 so that a stage and the recipe (floor 3) speak of the same thing without seeing each other.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from milonga.core.records import Record

Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
Difference = Annotated[float, Field(ge=-2.0, le=2.0)]


class Strategy(Record):
    """One way to make the candidates of a prompt (§4.1.1 of the paper): denoising steps, guidance and wrong captions.

    `negatives="none"` makes one clip for each entry of `steps`, all from the caption itself. `"perturbed"` and
    `"temporal"` make one clip from the caption and one from each of up to `num_negatives` wrong captions, with
    `steps[0]`; `"temporal"` only for captions with a temporal word (τ2), the others only for the diverse ones (τ1).
    """

    name: str = Field(min_length=1)
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    guidance: float = Field(ge=0.0, allow_inf_nan=False)
    negatives: Literal["none", "perturbed", "temporal"] = "none"
    num_negatives: int = Field(default=0, ge=0)

    @classmethod
    def same_prompt(cls, steps: Sequence[int], guidance: float = 3.0, name: str = "same-prompt") -> Self:
        """Strategy 1: one clip of the caption for each number of denoising steps (the paper: 5, 25, 50, 100, or four
        times 50).
        """
        return cls(name=name, steps=tuple(steps), guidance=guidance)

    @classmethod
    def perturbed(cls, num_negatives: int = 5, steps: int = 50, guidance: float = 3.0, name: str = "perturbed") -> Self:
        """Strategy 2: the caption against clips of `num_negatives` captions that are close but wrong (the paper: 5)."""
        return cls(name=name, steps=(steps,), guidance=guidance, negatives="perturbed", num_negatives=num_negatives)

    @classmethod
    def temporal(cls, num_negatives: int = 5, steps: int = 50, guidance: float = 3.0, name: str = "temporal") -> Self:
        """Strategy 3: the caption against clips of captions whose events come in another order (the paper: 5)."""
        return cls(name=name, steps=(steps,), guidance=guidance, negatives="temporal", num_negatives=num_negatives)


class Threshold(Record):
    """What a pair must meet by one scorer (§4.1.2 of the paper), in cosine similarity. The defaults refuse no cosine.

    The winner scores at least `min_winner_score` (the paper's α) and the loser at least `min_loser_score` (β); the
    winner's score less the loser's lies from `min_margin` to `max_margin` (both the paper's Δ).
    """

    scorer: str = Field(min_length=1)
    min_winner_score: Cosine = -1.0
    min_loser_score: Cosine = -1.0
    min_margin: Difference = -2.0
    max_margin: Difference = 2.0

    def __init__(self, scorer: str | None = None, **values: Any) -> None:
        super().__init__(**(values if scorer is None else {"scorer": scorer, **values}))

    # Pydantic reads this mark: it validates a recipe's table without calling `__init__`, strictly and with its place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class RewardModel(Record):
    """A small network on frozen CLAP features that learns from labels (BATON's first step, arXiv 2402.00744).

    `scorer` names the CLAP (None: the first scorer). `val_fraction` is the share of captions whose labels are only
    measured on; `width` is that of the hidden layers, `steps` counts AdamW steps over all labels at once.
    """

    scorer: str | None = Field(default=None, min_length=1)
    val_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    width: int = Field(default=64, ge=1)
    steps: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0.0, allow_inf_nan=False)
    weight_decay: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)


class Asking(Record):
    """How a language model's server is asked: so many captions at once, each so often, `timeout` in seconds.

    Prices are per million tokens, in any currency; with both given, a run tells what it cost.
    """

    concurrency: int = Field(default=4, ge=1, le=256)
    timeout: float = Field(default=60.0, gt=0.0, allow_inf_nan=False)
    attempts: int = Field(default=5, ge=1)
    price_in: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    price_out: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)


class Workers(Record):
    """Where work runs: how many workers for sharded work (0: as many as fit), the CPUs and GPUs of each on a cluster,
    and the device of all networks (`auto`: CUDA where there is one, else Apple's MPS, else the CPU; or torch's name).
    """

    device: str = Field(default="auto", min_length=1)
    count: int = Field(default=0, ge=0)
    cpus: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    gpus: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        for name in ("cpus", "gpus"):
            amount = getattr(self, name)
            if amount > 1 and amount % 1:
                raise ValueError(f"{name} = {amount:g}: more than one must be a whole number")
        return self


class Phase(Record):
    """One phase of training: a loss, for how many epochs or optimizer `steps`, its β, and its rate (None: the
    settings' rate).
    """

    loss: str = Field(min_length=1)
    epochs: int = Field(default=1, ge=1)
    steps: int = Field(default=0, ge=0)
    beta: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    learning_rate: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if self.steps and self.epochs > 1:
            raise ValueError(f"a phase has {self.epochs} epochs or {self.steps} steps: leave one of them out")
        return self


# Keys of `Settings` in the first edition and their names now: a recipe's old keys are read for one version.
RENAMED_SETTINGS = {
    "accumulation": "gradient_accumulation_steps",
    "omega": "loss_weighting",
    "winner_guard": "sdpo_mu",
    "guard_by": "safeguard",
    "anchor": "prior_weight",
    "fixed_draws": "noise_samples_per_pair",
    "sharded": "fsdp",
    "stop_rise": "early_stop_winner_error",
    "listen_every": "sample_every",
    "keep": "save_total_limit",
    "final_rate": "min_lr_ratio",
}


class Settings(Record):
    """How the trainer steps, whatever the loss; the recipe reference says what each key does, and what turns it off.

    `ema` is a decay; `prior_weight` weighs the plain denoising loss on real clips (prior preservation) beside the
    preference loss; `min_lr_ratio` is the linear schedule's end as a share of its peak; `noise_samples_per_pair` is the
    number of (timestep, noise) that a pair has in all (0: new ones each epoch); `sdpo_mu` is SDPO's μ,
    `crpo_weight` the weight of CRPO's second term; with `pair_weights` = "gap" a pair's loss is weighted by its gap
    (`pairs.score_gaps`).

    Of preference phases: `train_guidance` trains the guided prediction u + g(c − u) that is sampled (1: the conditional
    one alone); `trust_region` weighs ‖v_θ − v_ref‖²; `grad_clip_quantile` clips at that running quantile of the
    gradient's norms and not at `max_grad_norm`. Of group-wise losses: `ratio_clip` bounds exp(e_old − e_θ), and
    `old_policy` is the network as given or its `ema`.

    Of the losses that distil: the student learns the guidance scales from the first to the second of `distil_guidance`.

    Of `draft`: its clips take `draft_steps` of `draft_scheduler` (None: the model's own) at `train_guidance`, with
    gradients through the last `draft_last` of them (0: all); `draft_weights` are those of its scorers in the reward
    (none: all alike).
    """

    batch_size: int = Field(default=16, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0.0, allow_inf_nan=False)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["linear", "constant"] = "linear"
    min_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    released_ranks: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=1e-2, ge=0.0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    timesteps: Literal["uniform", "biased", "high-noise"] = "uniform"
    shared_noise: bool = True
    shared_timestep: bool = True
    loss_weighting: Literal["prediction", "released", "epsilon", "sigmoid"] = "prediction"
    sdpo_mu: float = Field(default=0.0, ge=0.0, lt=1.0)
    crpo_weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    pair_weights: Literal["equal", "gap"] = "equal"
    safeguard: Literal["output", "parameters"] = "output"
    auto_beta: float | None = Field(default=None, gt=0.0, lt=0.5)
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    caption_dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    prior_weight: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    snr_gamma: float | None = Field(default=None, gt=0.0)
    reference: Literal["copy", "cached"] = "copy"
    noise_samples_per_pair: int = Field(default=0, ge=0)
    lora_rank: int = Field(default=0, ge=0)
    lora_alpha: int | None = Field(default=None, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    compile: bool = False
    fsdp: bool = False
    train_guidance: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    trust_region: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    distil_guidance: tuple[Annotated[float, Field(ge=1.0, le=100.0)], Annotated[float, Field(ge=1.0, le=100.0)]] = (
        1.0,
        6.0,
    )
    draft_steps: int = Field(default=8, ge=1)
    draft_scheduler: str | None = Field(default=None, min_length=1)
    draft_last: int = Field(default=0, ge=0)
    draft_weights: tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...] = ()
    ratio_clip: float = Field(default=0.0, ge=0.0, lt=1.0)
    old_policy: Literal["reference", "ema"] = "reference"
    grad_clip_quantile: float | None = Field(default=None, gt=0.0, lt=1.0)
    early_stop_winner_error: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    patience: int = Field(default=0, ge=0)
    sample_every: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=100, ge=1)
    save_total_limit: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.loss_weighting == "released" and self.snr_gamma is None:
            raise ValueError(
                'loss_weighting = "released" is a Min-SNR weight: set snr_gamma too (5 in the released code)'
            )
        if self.loss_weighting in ("epsilon", "sigmoid") and self.snr_gamma is not None:
            raise ValueError(
                f'loss_weighting = "{self.loss_weighting}" and snr_gamma are two weights: keep one of them'
            )
        if self.reference == "cached" and (self.trust_region or self.train_guidance > 1):
            raise ValueError(
                'reference = "cached" stores errors alone: trust_region and train_guidance need its answers'
            )
        if self.old_policy == "ema" and self.ema == 0:
            raise ValueError('old_policy = "ema" needs ema, the decay of the averaged weights')
        if self.distil_guidance[0] > self.distil_guidance[1]:
            raise ValueError("distil_guidance names the least guidance first, then the greatest")
        if self.draft_last > self.draft_steps:
            raise ValueError(f"draft_last = {self.draft_last} is more than draft_steps = {self.draft_steps}")
        if self.fsdp and self.lora_rank:
            raise ValueError("fsdp has no LoRA: set lora_rank = 0 or fsdp = false")
        return self
