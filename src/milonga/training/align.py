"""`AlignTrainer`: from a model and a data set to an aligned model, in one folder that `milonga.load` reads."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from milonga.core.config import Phase, Settings
from milonga.core.errors import RecipeError, ServiceError, brief
from milonga.core.ids import file_hash
from milonga.core.store import Run, atomic_dir, write_json
from milonga.maths.devices import working_on

if TYPE_CHECKING:
    from milonga.core.protocols import Model
    from milonga.data.examples import Examples
    from milonga.data.pairs import PairDataset
    from milonga.models.denoiser import Denoiser
    from milonga.training.trainer import TrainerCallback

# What a training leaves in its folder.
TRAINING_FILES = ("checkpoints", "model", "adapter", "reference", "plan.json", "curves.jsonl", "rewards.json")


class AlignConfig(Settings):
    """How an `AlignTrainer` trains and where: `Settings`, with phases, a folder and a share of validation captions.

    `phases` are `Phase`s or strings such as "sft:1" and "dpo:4" (loss:epochs) and "dpo:4:2000" (with its β); `beta` is
    the β of the phases that need one and name none (2000 in the paper). `val_fraction` of the captions are only
    evaluated, at the end of each epoch. With `save_whole_model` the output folder is a whole model, and the training's
    own files are in its folder `training`; without it they are in the output folder itself, whose `model` is the
    trained network alone.
    `allow_missing` trains also where more than half of the clips or pairs cannot be used. Data are encoded and the
    network trained on `device`; encoders are on it while they encode.
    """

    output_dir: Path
    phases: tuple[Phase, ...] = Field(min_length=1)
    beta: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**63)
    val_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    save_whole_model: bool = True
    allow_missing: bool = False
    device: str = Field(default="auto", min_length=1)

    @field_validator("phases", mode="before")
    @classmethod
    def _from_strings(cls, phases: Any) -> Any:
        return tuple(_phase(phase) if isinstance(phase, str) else phase for phase in phases)

    @model_validator(mode="after")
    def _with_beta(self) -> Self:
        from milonga.training.schedule import loss_spec

        complete = tuple(
            phase.model_copy(update={"beta": self.beta})
            if loss_spec(phase.loss).needs_beta and not phase.beta
            else phase
            for phase in self.phases
        )
        object.__setattr__(self, "phases", complete)
        return self

    def settings(self) -> Settings:
        """The trainer's settings alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def _phase(text: str) -> Phase:
    """A phase from "loss:epochs" or "loss:epochs:beta"; ValueError for anything else."""
    loss, *numbers = text.split(":")
    try:
        return Phase(loss=loss, epochs=int(numbers[0]), beta=float(numbers[1]) if len(numbers) > 1 else 0.0)
    except (IndexError, ValueError):
        raise ValueError(f"{text!r} is no phase: write loss:epochs, such as sft:1, or loss:epochs:beta") from None


class AlignTrainer:
    """Aligns a model to preference pairs, or fine-tunes it on captioned clips.

    `model` is a name, a `TangoPipeline` or a `Denoiser`. `train_dataset` and `eval_dataset` are what `read_pairs` takes
    (pairs from `build_pairs`, a run folder, a folder in Audio-alpaca's layout, a `datasets.Dataset`), a source of clips
    such as "clips:metadata.csv", training `Examples`, or for `draft` a list of captions. `scorers`, names or objects,
    reward the clips that `draft` samples. `ref_model` replaces the reference, which is the model as
    given. `callbacks` are `TrainerCallback`s. `compute_metrics(model)` gets a generator with the weights that would be
    saved, every `config.sample_every` steps (0: at the end of each epoch), and its numbers go into the log. `examples`
    that are already encoded need no text encoder and no autoencoder.
    """

    def __init__(
        self,
        model: Any,
        train_dataset: Any,
        config: AlignConfig,
        eval_dataset: Any = None,
        ref_model: Any = None,
        callbacks: "Sequence[TrainerCallback]" = (),
        compute_metrics: "Callable[[Model], dict[str, float]] | None" = None,
        scorers: Sequence[Any] = (),
    ) -> None:
        self.model, self.train_dataset, self.eval_dataset = model, train_dataset, eval_dataset
        self.config, self.ref_model, self.callbacks = config, ref_model, list(callbacks)
        self.compute_metrics, self.scorers = compute_metrics, scorers
        self._denoiser: Denoiser | None = None
        self._begun = False  # a training of this trainer: its denoiser no longer has its starting weights

    @property
    def denoiser(self) -> "Denoiser":
        """The model that is trained, loaded when it is first used."""
        if self._denoiser is None:
            from milonga.models.load import as_denoiser
            from milonga.training.schedule import loss_spec

            self._denoiser = as_denoiser(self.model)
            add_input: Any = getattr(self._denoiser, "add_guidance_input", None)
            distils = [loss_spec(phase.loss).distils for phase in self.config.phases]
            if add_input is not None and any(distils):
                add_input(consistent="consistency" in distils)
        return self._denoiser

    @property
    def folder(self) -> Path:
        """The folder of checkpoints, plan, log and trained network."""
        return self.config.output_dir / "training" if self.config.save_whole_model else self.config.output_dir

    @property
    def finished(self) -> bool:
        """Whether `output_dir` holds the result of a training that ran to its end."""
        whole = self.config.save_whole_model
        return (self.config.output_dir / "finished.json" if whole else self.folder / "model").exists()

    def train(
        self, resume_from_checkpoint: bool = True, log_path: Path | None = None, sample: Any = None, label: str = ""
    ) -> Path:
        """Trains through all phases, saves the model in `config.output_dir`, and returns that folder.

        With `resume_from_checkpoint` a training that was interrupted continues from its newest checkpoint, and one that
        has finished returns at once; StoreError names what differs where the folder's training had other data, settings
        or seed. Without it the folder's training files are deleted first, and a model that was given by name is loaded
        again; RecipeError for an object, which has been trained in place. Under torchrun or `accelerate launch` every
        process calls this alike. `log_path` and `label` are the log's place and the name shown; `sample` is
        `Trainer.sample`. Raises as `Trainer.run` does.
        """
        from milonga.models.generator import generator_of
        from milonga.models.load import as_denoiser
        from milonga.scorers.load import scorer
        from milonga.training.distributed import Ranks
        from milonga.training.trackers import print_betas, show_training
        from milonga.training.trainer import OnStep, Trainer

        config, ranks, folder = self.config, Ranks(), self.folder
        name = label or config.output_dir.name
        if self._begun and not (resume_from_checkpoint and self.finished):
            if not isinstance(self.model, str | Path):
                kind = type(self.model).__name__
                raise RecipeError(f"this {kind} has been trained in place: load it again, and give it to a new trainer")
            self._denoiser = None
        if not resume_from_checkpoint and ranks.is_main:
            for path in (config.output_dir / "finished.json", *(folder / file for file in TRAINING_FILES)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        ranks.wait()
        if self._begun and self.finished:
            return config.output_dir
        examples, val = self.examples(ranks)
        sampler = sample
        if self.compute_metrics is not None and sampler is None:
            generator, metrics = generator_of(name, self.denoiser, config.device), self.compute_metrics

            def sampler(step: int) -> dict[str, float]:
                return {key: float(value) for key, value in metrics(generator).items()}

        self._begun = True
        if ranks.is_main:
            print_betas(config.phases, examples)
        trackers, facts = config.trackers if ranks.is_main else (), config.model_dump(mode="json")
        logs = log_path.parent if log_path else folder
        with show_training(f"train {name}", name, logs, trackers, facts) if ranks.is_main else nullcontext() as show:
            callbacks = [*self.callbacks, *([OnStep(show)] if show else [])]
            reference = None if self.ref_model is None else as_denoiser(self.ref_model)
            Trainer(
                self.denoiser, examples, config.phases, config.settings(), config.seed, folder, val, log_path, sampler,
                callbacks, reference,
                [scorer(part, config.device) if isinstance(part, str) else part for part in self.scorers],
                config.device,
            ).run()  # fmt: skip
        if config.save_whole_model and ranks.is_main and not self.finished:
            self._write_model(config.output_dir)
        ranks.wait()
        return config.output_dir

    def examples(self, ranks: Any = None) -> "tuple[Examples, Examples | None]":
        """Encoded examples to train on and to validate on; encoding is stored in `output_dir`/encoded and reused."""
        from milonga.data.examples import train_val_split
        from milonga.training.distributed import Ranks

        encode = (ranks or Ranks()).main_process_first
        examples = encode(lambda: self._encode(self.train_dataset))
        if self.eval_dataset is not None:
            return examples, encode(lambda: self._encode(self.eval_dataset))
        return train_val_split(examples, self.config.val_fraction, self.config.seed)

    def save_model(self, folder: str | Path) -> Path:
        """Writes the trained model into a new `folder`, which `milonga.load` reads; gives the folder.

        Raises RecipeError before the training has finished, and for a folder that holds anything.
        """
        if Path(folder).is_dir() and any(Path(folder).iterdir()):
            raise RecipeError(f"{folder} holds files already: name a new folder (train() has saved in output_dir)")
        with atomic_dir(Path(folder)) as part:
            self._save_to(part)
        return Path(folder)

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Uploads the trained model to the Hub as `USER/NAME`, and gives its address.

        Raises RecipeError before the training has finished or without credentials, ServiceError when the Hub refuses
        or cannot be reached.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi, get_token

        if not get_token():
            raise RecipeError("there is no Hugging Face token: log in by `hf auth login`, or set HF_TOKEN")
        address = f"https://huggingface.co/{name}"
        with TemporaryDirectory() as temporary:
            folder = self.save_model(Path(temporary) / "model")
            try:
                HfApi().create_repo(name, private=private, exist_ok=True)
                HfApi().upload_folder(repo_id=name, folder_path=folder)
            except Exception as error:  # the Hub's client raises its own, its transport's and the system's errors
                raise ServiceError(f"{address} did not take the model: {brief(error)}; try again") from error
        return address

    def _encode(self, dataset: Any) -> "Examples":
        """Examples of whatever names or holds pairs or clips; encoded data are stored in `output_dir`/encoded."""
        if hasattr(dataset, "batch") and hasattr(dataset, "num_prior"):
            return dataset
        with working_on(self.denoiser.others, self.config.device):
            return self._encoded(dataset)

    def _encoded(self, dataset: Any) -> "Examples":
        from milonga.data.encode import encode_captions, encode_clips, encode_pairs, encode_run_pairs
        from milonga.data.examples import CaptionExamples
        from milonga.data.pairs import FilePairs, read_pairs

        denoiser, work, seed = self.denoiser, self.config.output_dir / "encoded", self.config.seed
        allow = self.config.allow_missing
        if isinstance(dataset, str) and dataset.partition(":")[0] in ("clips", "dataset"):
            return encode_clips(denoiser, dataset, work, seed=seed, allow_missing=allow)
        if isinstance(dataset, list | tuple) and all(isinstance(text, str) for text in dataset):
            conditioning = encode_captions(denoiser, Run(work / denoiser.fingerprint), dataset).rows(dataset)
            return CaptionExamples(dataset, conditioning, denoiser.latent_shape, seed)
        pairs = read_pairs(dataset)
        if pairs.run is not None:
            return encode_run_pairs(denoiser, pairs.run, work)
        if isinstance(pairs, FilePairs):
            return encode_pairs(denoiser, pairs.path, work, pairs.split, seed, allow)[1]
        return encode_pairs(denoiser, _as_file(pairs, work), work, seed=seed, allow_missing=allow)[1]

    def _save_to(self, folder: Path) -> None:
        """Writes the whole trained model, and the adapter where there is one, into an empty folder."""
        from milonga.models.load import load_denoiser

        network = self.folder / "model"
        if not network.is_dir():
            raise RecipeError(f"{self.config.output_dir} holds no finished training: call train() first")
        if isinstance(self.model, str | Path):  # a model that FSDP has sharded is loaded again
            denoiser = load_denoiser(str(self.model), network)
        else:
            denoiser = self.denoiser
            denoiser.load(network)
        denoiser.save_model(folder)
        if (self.folder / "adapter").is_dir():
            shutil.copytree(self.folder / "adapter", folder / "adapter", dirs_exist_ok=True)

    def _write_model(self, folder: Path) -> None:
        """Writes the whole model beside the training, moves its files in, and marks the training as finished last."""
        with atomic_dir(self.folder / "whole") as part:
            self._save_to(part)
        for file in sorted((self.folder / "whole").iterdir()):
            target = folder / file.name
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
        (self.folder / "whole").rmdir()
        write_json(folder / "finished.json", self.config.model_dump(mode="json", exclude={"output_dir", "device"}))


def _as_file(pairs: "PairDataset", folder: Path) -> Path:
    """A `datasets.Dataset` of pairs as a Parquet file in `folder`, whose name is the hash of its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio

    from milonga.data.audio_alpaca import REGION

    dataset = pairs.to_dataset()
    for side in ("chosen", "rejected"):
        dataset = dataset.cast_column(side, Audio(decode=False))
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [("prompt", pa.string()), ("chosen", audio), ("rejected", audio), ("strategy", pa.string())]
    places = [name for name in REGION if name in dataset.column_names]
    schema = pa.schema([*columns, *((name, pa.float64()) for name in places)])
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "dataset.parquet.part"
    with pq.ParquetWriter(part, schema) as writer:
        for row in dataset:
            cells = {name: row[name] for name in places}
            cells |= {"prompt": row["prompt"], "strategy": str(row.get("strategy") or "")}
            for side in ("chosen", "rejected"):
                clip = row[side]
                cells[side] = {"bytes": clip["bytes"] or Path(clip["path"]).read_bytes(), "path": clip["path"]}
            writer.write_table(pa.Table.from_pylist([cells], schema))
    file = folder / f"{file_hash(part)}.parquet"
    part.replace(file)
    return file
