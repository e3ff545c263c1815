"""Checkpoints: written atomically, and verified before they are used.

A checkpoint holds what is trained of the network, the optimizer's moments, the EMA, the step and other counters. It
holds no generator state by design: every draw is derived from the run's seed and the step or example it is for.

Of a network that is sharded over ranks each rank writes its own part (`torch.distributed.checkpoint`), and no rank ever
holds the whole; any number of ranks, or one without shards, resumes from them.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from milonga.core.config import Settings
from milonga.core.errors import CheckpointError
from milonga.core.ids import content_id, file_hash
from milonga.core.store import atomic_dir, write_json
from milonga.models.denoiser import Denoiser
from milonga.training.distributed import Ranks, is_sharded, shard_like

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]
Read = Callable[..., Tensors]
SHARDS = "shards"  # the folder of what each rank wrote


class Resumable(Protocol):
    """What a checkpoint is taken of."""

    step: int

    def tensors(self) -> dict[str, Tensors]:
        """All tensors, by the file they are stored in and their name there."""
        ...

    def counters(self) -> dict[str, Any]:
        """All else, as plain JSON values."""
        ...

    def restore(self, read: "Read", counters: Mapping[str, Any]) -> None:
        """Takes the state of a checkpoint, of which `read(file)` gives a file's tensors on the CPU.

        `read(file, like)` gives those that belong to a parameter of `like` as shards where it is sharded.
        """
        ...


@dataclass
class TrainState:
    """What training changes: the network, its optimizer, its EMA (None: off), steps done, losses skipped in a row, and
    the running means that alerts and losses use.
    """

    denoiser: Denoiser
    optimizer: Optimizer
    ema: "EMAModel | None"
    step: int = 0
    skipped: int = 0
    monitor: dict[str, float] = field(default_factory=dict)

    @classmethod
    def new(cls, denoiser: Denoiser, settings: Settings) -> "TrainState":
        """The state before the first step, with AdamW and, if asked for, the average of the weights."""
        from diffusers.training_utils import EMAModel

        parameters = [value for value in denoiser.module.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        foreach = not any(map(is_sharded, parameters))  # torch has none for sharded tensors
        ema = EMAModel(parameters, decay=settings.ema, foreach=foreach) if settings.ema > 0 else None
        return cls(denoiser, optimizer, ema)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: all, or an adapter's. The EMA keeps this order."""
        return {name: value for name, value in self.denoiser.module.named_parameters() if value.requires_grad}

    def update(self, lr: float, skip: bool) -> None:
        """Applies the gradient and counts the step; with `skip` the gradient is thrown away and that is counted."""
        if not skip:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            if self.ema is not None:
                self.ema.step(list(self.trained().values()))
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.skipped = self.step + 1, self.skipped + 1 if skip else 0

    def tensors(self) -> dict[str, Tensors]:
        """What is trained of the network, its optimizer's moments and, where there is one, its average."""
        parameters = self.trained()
        files: dict[str, Tensors] = {"model": dict(parameters), "optimizer": moments(self.optimizer, parameters)}
        if self.ema is not None:
            files["ema"] = dict(zip(parameters, self.ema.shadow_params, strict=True))
        return files

    def counters(self) -> dict[str, Any]:
        """Steps, skipped losses, the EMA's steps and the running means."""
        averaged = 0 if self.ema is None else self.ema.optimization_step
        return {"step": self.step, "skipped": self.skipped, "averaged": averaged, "monitor": self.monitor}

    def restore(self, read: Read, counters: Mapping[str, Any]) -> None:
        """Takes the state of a checkpoint."""
        parameters = self.trained()
        for name, value in read("model", parameters).items():
            parameters[name].data.copy_(shard_like(value, parameters[name]))
        restore_moments(self.optimizer, parameters, read("optimizer", parameters))
        if self.ema is not None:
            shadow = read("ema", parameters)
            self.ema.shadow_params = [
                shard_like(shadow[name].to(parameter.device), parameter) for name, parameter in parameters.items()
            ]
            self.ema.optimization_step = counters["averaged"]
        self.step, self.skipped, self.monitor = counters["step"], counters["skipped"], counters["monitor"]


def moments(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """The state of an optimizer by `parameter|key`."""
    return {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Tensors) -> None:
    """Gives an optimizer the state that `moments` returned."""
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("|", 1)
        parameter = parameters[name]
        value = value.to(parameter.device)
        if value.dim() and not is_sharded(parameter):  # in the parameter's own memory format
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = shard_like(value, parameter) if value.dim() else value


class Checkpoints:
    """The newest `limit` checkpoints of one training, in one folder, named by their step."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit

    def save(self, state: Resumable, note: dict[str, Any], ranks: Ranks) -> Path:
        """Writes a checkpoint with a `note` (plain JSON values), deletes all but the newest, and gives its folder.

        All ranks call this. The main process writes; of a sharded network each rank writes its own part.
        """
        from safetensors.torch import save_file

        path, tensors = self.folder / f"step-{state.step:08d}", state.tensors()
        with atomic_dir(path) if ranks.is_main else nullcontext() as target:
            part = ranks.from_main(target)
            assert part is not None  # the main process has one
            if any(is_sharded(value) for values in tensors.values() for value in values.values()):
                _write_shards(part / SHARDS, tensors)
            elif ranks.is_main:
                for name, values in tensors.items():
                    plain = {key: value.detach().contiguous() for key, value in values.items()}
                    save_file(plain, part / f"{name}.safetensors")
            if ranks.is_main:
                files = [*part.glob("*.safetensors"), *part.glob(f"{SHARDS}/*")]
                hashes = {file.relative_to(part).as_posix(): file_hash(file) for file in sorted(files)}
                description = state.counters() | {"note": note, "files": hashes}
                write_json(part / "state.json", description | {"seal": content_id(description)})
        if ranks.is_main:
            for old in [p for p in self._paths() if p.name <= path.name][: -self._limit]:
                shutil.rmtree(old)
        ranks.wait()
        return path

    def load(self, state: Resumable) -> dict[str, Any] | None:
        """Puts the newest intact checkpoint into `state` and returns its note; None when there is none.

        A damaged one is skipped with a warning, and the one before it is tried.
        """
        for path in reversed(self._paths()):
            try:
                description = _verified(path)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
                continue
            state.restore(partial(_read_shards if (path / SHARDS).is_dir() else _read_file, path), description)
            return description["note"]
        return None

    def newest(self) -> Path | None:
        """The newest intact checkpoint, or None."""
        for path in reversed(self._paths()):
            try:
                _verified(path)
            except CheckpointError:
                continue
            return path
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-{'[0-9]' * 8}"))


def _read_file(path: Path, name: str, like: Mapping[str, Tensor] | None = None) -> Tensors:
    from safetensors.torch import load_file

    return load_file(path / f"{name}.safetensors")


def _write_shards(folder: Path, tensors: dict[str, Tensors]) -> None:
    """Writes this rank's part of all tensors, named `file/tensor`; all ranks call this alike."""
    import torch.distributed.checkpoint as dcp

    state = {f"{name}/{key}": value.detach() for name, values in tensors.items() for key, value in values.items()}
    dcp.save(state, checkpoint_id=folder)


def _read_shards(path: Path, name: str, like: Mapping[str, Tensor] | None = None) -> Tensors:
    """A file's tensors, this rank's part of those that belong to a sharded parameter; all ranks call this alike."""
    import torch.distributed.checkpoint as dcp

    reader, tensors = dcp.FileSystemReader(path / SHARDS), Tensors()
    for full_name, stored in reader.read_metadata().state_dict_metadata.items():
        file, _, key = full_name.partition("/")
        if file != name or not isinstance(stored, dcp.metadata.TensorStorageMetadata):
            continue
        parameter = (like or {}).get(key.rpartition("|")[0] or key)
        if parameter is None or parameter.shape != stored.size:
            tensors[key] = torch.empty(stored.size, dtype=stored.properties.dtype)
        else:
            tensors[key] = torch.empty_like(parameter.detach(), dtype=stored.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process", category=UserWarning)
        dcp.load({f"{name}/{key}": value for key, value in tensors.items()}, storage_reader=reader)
    return tensors


def _verified(path: Path) -> dict[str, Any]:
    """The contents of state.json; CheckpointError when it, or a file that it lists, is not as it was written."""
    try:
        description = json.loads((path / "state.json").read_bytes())
        intact = description.pop("seal") == content_id(description)
        broken = [name for name, digest in description["files"].items() if file_hash(path / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error})") from error
    if not intact or broken:
        raise CheckpointError(f"checkpoint {path} is damaged ({', '.join(broken) or 'state.json'})")
    return description
