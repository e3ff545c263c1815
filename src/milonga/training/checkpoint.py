"""Checkpoints: written atomically, and verified before they are used.

A checkpoint holds what is trained of the network, the optimizer's moments, the EMA, the step and other counters. It
holds no generator state by design: every draw is derived from the run's seed and the step or example it is for.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from milonga.training.distributed import Ranks, shard_like

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]


class Resumable(Protocol):
    """What a checkpoint is taken of."""

    step: int

    def tensors(self) -> dict[str, Tensors]:
        """All tensors, by the file they are stored in and their name there."""
        ...

    def counters(self) -> dict[str, Any]:
        """All else, as plain JSON values."""
        ...

    def restore(self, read: Callable[[str], Tensors], counters: Mapping[str, Any]) -> None:
        """Takes the state of a checkpoint, of which `read(file)` gives a file's tensors on the CPU."""
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
        foreach = not any(hasattr(value, "full_tensor") for value in parameters)  # torch has none for sharded tensors
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

    def restore(self, read: Callable[[str], Tensors], counters: Mapping[str, Any]) -> None:
        """Takes the state of a checkpoint."""
        parameters = self.trained()
        for name, value in read("model").items():
            parameters[name].data.copy_(shard_like(value, parameters[name]))
        restore_moments(self.optimizer, parameters, read("optimizer"))
        if self.ema is not None:
            shadow = read("ema")
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
        if value.dim() and not hasattr(parameter, "full_tensor"):  # in the parameter's own memory format
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = shard_like(value, parameter) if value.dim() else value


class Checkpoints:
    """The newest `limit` checkpoints of one training, in one folder, named by their step."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit

    def save(self, state: Resumable, note: dict[str, Any], ranks: Ranks) -> Path:
        """Writes a checkpoint with a `note` (plain JSON values), deletes all but the newest, and gives its folder.

        All ranks call this; sharded parameters are gathered, and the main process writes.
        """
        from safetensors.torch import save_file

        path = self.folder / f"step-{state.step:08d}"
        files = {
            name: {key: ranks.full_tensor(value) for key, value in tensors.items()}
            for name, tensors in state.tensors().items()
        }
        if ranks.is_main:
            with atomic_dir(path) as part:
                for name, tensors in files.items():
                    plain = {key: value.detach().contiguous() for key, value in tensors.items()}
                    save_file(plain, part / f"{name}.safetensors")
                hashes = {file.name: file_hash(file) for file in sorted(part.glob("*.safetensors"))}
                description = state.counters() | {"note": note, "files": hashes}
                write_json(part / "state.json", description | {"seal": content_id(description)})
            for old in [p for p in self._paths() if p.name <= path.name][: -self._limit]:
                shutil.rmtree(old)
        ranks.wait()
        return path

    def load(self, state: Resumable) -> dict[str, Any] | None:
        """Puts the newest intact checkpoint into `state` and returns its note; None when there is none.

        A damaged one is skipped with a warning, and the one before it is tried.
        """
        from safetensors.torch import load_file

        for path in reversed(self._paths()):
            try:
                description = _verified(path)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
                continue
            state.restore(lambda name, path=path: load_file(path / f"{name}.safetensors"), description)
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
