"""A resumable loop for one network and a loss that is a function of the step: how nano's small networks are trained.

All random draws of a step must derive from its number, so a training that is stopped and run again ends with the same
bits. Checkpoints and the log are the trainer's.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from milonga.core.store import write_bytes
from milonga.training.checkpoint import Checkpoints, Read, Tensors, moments, restore_moments
from milonga.training.distributed import Ranks
from milonga.training.monitor import TrainingLog

LOG_EVERY = 20  # steps between two rows of the log


def fit(
    network: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    folder: Path,
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    weight_decay: float = 0.01,
    ema: float = 0.0,
    checkpoint_every: int = 200,
    on_step: Callable[[dict[str, Any]], None] = lambda row: None,
) -> None:
    """Trains `network` in place by AdamW for `steps` steps; it ends with the averaged weights where there is an `ema`.

    `loss(step)` returns named scalars, of which "loss" is minimised, with gradients clipped to norm 1. Every twentieth
    step and the last are rows of `folder`/curves.jsonl; `on_step` is given each step's number from 1 on and the total.
    Resumes from the newest intact checkpoint; a finished training, whose weights are `folder`/model.safetensors, is
    loaded.
    """
    from safetensors.torch import load_file, save

    finished = folder / "model.safetensors"
    if finished.exists():
        network.load_state_dict(load_file(finished))
        return
    state, ranks = _FitState(network, weight_decay, ema), Ranks()
    checkpoints = Checkpoints(folder / "checkpoints", limit=1)
    note = checkpoints.load(state) or {"curves": 0}
    with closing(TrainingLog(folder / "curves.jsonl", note["curves"])) as log:
        while state.step < steps:
            step = state.step
            network.train()
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(step)
            terms = loss(step)
            state.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            state.optimizer.step()
            state.update_average()
            if step % LOG_EVERY == 0 or step == steps - 1:
                log.write({"step": step, **{name: float(value.detach()) for name, value in terms.items()}})
            on_step({"step": step + 1, "total": steps})
            state.step += 1
            if state.step % checkpoint_every == 0:
                checkpoints.save(state, {"curves": log.flush()}, ranks)
    network.load_state_dict(state.average or network.state_dict())
    write_bytes(finished, save(_copies(network.state_dict())))


class _FitState:
    """What `fit` changes: the network, its optimizer and the running average of the weights, buffers included."""

    def __init__(self, network: nn.Module, weight_decay: float, ema: float) -> None:
        self.network, self.ema, self.step = network, ema, 0
        self.optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay, betas=(0.9, 0.98))
        self.average = {key: value.clone() for key, value in network.state_dict().items()} if ema else {}

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average towards the present weights, faster at first; integers (counters) are copied."""
        decay = min(self.ema, (self.step + 1) / (self.step + 10))
        for key, value in self.network.state_dict().items() if self.average else ():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    def tensors(self) -> dict[str, Tensors]:
        parameters = dict(self.network.named_parameters())
        files = {"model": _copies(self.network.state_dict()), "optimizer": moments(self.optimizer, parameters)}
        return files | ({"ema": _copies(self.average)} if self.average else {})

    def counters(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, read: Read, counters: Mapping[str, Any]) -> None:
        self.network.load_state_dict(read("model"))
        restore_moments(self.optimizer, dict(self.network.named_parameters()), read("optimizer"))
        for key, value in read("ema").items() if self.average else ():
            self.average[key].copy_(value)
        self.step = counters["step"]


def _copies(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors in memory of their own, since safetensors stores none that are shared under two names."""
    return {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
