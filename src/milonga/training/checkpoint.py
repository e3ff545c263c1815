"""Checkpoints that are whole or absent: written aside, flushed, renamed, and checked before they are trusted.

A checkpoint holds what is trained of the network, the optimizer's moments, the EMA, the step and the running means. It
holds no generator state by design: every draw is derived from the run's seed and the step or example it is for.
"""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from milonga.core.errors import CheckpointError
from milonga.core.ids import content_id, file_hash
from milonga.core.store import atomic_dir, write_json
from milonga.models.denoiser import Denoiser
from milonga.training.distributed import Ranks, like

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

log = logging.getLogger(__name__)


@dataclass
class State:
    """What training changes: the network, its optimizer, its EMA (None: off), steps done, losses skipped in a row, and
    the running means that guards and losses go by.
    """

    denoiser: Denoiser
    optimizer: Optimizer
    ema: "EMAModel | None"
    step: int = 0
    skipped: int = 0
    memory: dict[str, float] = field(default_factory=dict)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: all, or an adapter's."""
        return {name: value for name, value in self.denoiser.module.named_parameters() if value.requires_grad}

    def averaged(self) -> list[nn.Parameter]:
        """The parameters whose average the EMA keeps, in its order."""
        return list(self.trained().values())

    def save_network(self, folder: Path, ranks: Ranks) -> None:
        """Writes the finished network beside `folder`, then renames it; all ranks call this."""
        module, weights = self.denoiser.module, None
        if ranks.is_sharded(module):
            weights = {name: ranks.full_tensor(value).cpu() for name, value in module.state_dict().items()}
        if ranks.is_main:
            with atomic_dir(folder) as part:
                self.denoiser.save(part, weights)


class Checkpoints:
    """The newest `keep` checkpoints of one training, in one folder, named by their step."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(self, state: State, note: dict[str, Any], ranks: Ranks) -> None:
        """Writes a checkpoint with a `note` (plain JSON values), then deletes all but the newest `keep`.

        All ranks call this; cut up parameters are put together, and the first rank writes.
        """
        path, files = self.folder / f"step-{state.step:08d}", _tensors(state)
        files = {name: {key: ranks.full_tensor(one) for key, one in tensors.items()} for name, tensors in files.items()}
        if ranks.is_main:
            with atomic_dir(path) as part:
                for name, tensors in files.items():
                    _write_tensors(part / f"{name}.safetensors", tensors)
                _describe(part, state, note)
            for old in [p for p in self._paths() if p.name <= path.name][: -self._keep]:
                shutil.rmtree(old)
        ranks.wait()

    def load(self, state: State) -> dict[str, Any] | None:
        """Puts the newest good checkpoint into `state` and returns its note; None when there is none.

        A damaged one is passed over with a warning, and the one before it is tried.
        """
        for path in reversed(self._paths()):
            try:
                found = _checked(path)
            except CheckpointError as error:
                log.warning("%s; going back to the checkpoint before it", error)
                continue
            _restore(state, path, found)
            return found["note"]
        return None

    def newest(self) -> Path | None:
        """The newest checkpoint that is good, or None."""
        return next((path for path in reversed(self._paths()) if _is_good(path)), None)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-{'[0-9]' * 8}"))


def _tensors(state: State) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file of a checkpoint, by name."""
    named = state.trained()
    moments = {
        f"{name}|{key}": value
        for name, parameter in named.items()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }
    files = {"model": dict(named), "optimizer": moments}
    if state.ema is not None:
        files["ema"] = dict(zip(named, state.ema.shadow_params, strict=True))
    return files


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _describe(part: Path, state: State, note: dict[str, Any]) -> None:
    """Writes state.json: the counters, the note, each file's hash, and a seal over all of these."""
    files = {file.name: file_hash(file) for file in sorted(part.glob("*.safetensors"))}
    averaged = 0 if state.ema is None else state.ema.optimization_step
    found = {"step": state.step, "skipped": state.skipped, "averaged": averaged, "note": note, "files": files}
    found["memory"] = state.memory
    write_json(part / "state.json", found | {"seal": content_id(found)})


def _checked(path: Path) -> dict[str, Any]:
    """The contents of state.json, when it and all files it lists are as they were written; else CheckpointError."""
    try:
        found = json.loads((path / "state.json").read_bytes())
        good = found.pop("seal") == content_id(found)
        broken = [name for name, digest in found["files"].items() if file_hash(path / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error})") from error
    if not good or broken:
        raise CheckpointError(f"checkpoint {path} is damaged ({', '.join(broken) or 'state.json'})")
    return found


def _is_good(path: Path) -> bool:
    try:
        _checked(path)
    except CheckpointError:
        return False
    return True


def _restore(state: State, path: Path, found: dict[str, Any]) -> None:
    """Fills `state` from a checkpoint that has been checked."""
    from safetensors.torch import load_file

    named = state.trained()
    device = str(next(iter(named.values())).device)
    for name, value in load_file(path / "model.safetensors", device=device).items():
        named[name].data.copy_(like(value, named[name]))
    for full, value in load_file(path / "optimizer.safetensors", device=device).items():
        name, key = full.rsplit("|", 1)
        state.optimizer.state[named[name]][key] = value if value.dim() == 0 else like(value, named[name])
    if state.ema is not None:
        shadow = load_file(path / "ema.safetensors", device=device)
        state.ema.shadow_params = [like(shadow[name], parameter) for name, parameter in named.items()]
        state.ema.optimization_step = found["averaged"]
    state.step, state.skipped, state.memory = found["step"], found["skipped"], found.get("memory", {})
