"""`PipelineDenoiser`: what all denoisers around a pipeline of diffusers share: its parts, their hash, and its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from milonga.core.errors import RecipeError
from milonga.core.ids import content_id
from milonga.core.weights import fingerprint as weights_fingerprint
from milonga.models.denoiser import Conditioning, Precision, Process, module_hash

PIPELINE = '''"""Where diffusers finds this model's pipeline: `pip install milonga`."""

from {module} import {kind}

__all__ = ["{kind}"]
'''


class PipelineDenoiser:
    """A `Denoiser` of which one part of a pipeline is trained; its subclasses say how words and sounds are encoded.

    `Subclass.of(pipeline)` is the whole model. Without a pipeline only the network is there: it can be trained on
    examples that are already encoded, and saved.
    """

    network: ClassVar[str]  # the name of the part that is trained
    frozen: ClassVar[Sequence[str]]  # the names of the parts by which data is encoded
    sampling: ClassVar[tuple[int, float]]  # the steps and the guidance that the model is best sampled with

    def __init__(self, module: Any, process: Process, empty: Conditioning, pipe: Any = None) -> None:
        self.module = module
        self.process, self.empty, self._pipe = process, empty, pipe
        self._name: str | None = None
        self._fingerprint: str | None = None

    @classmethod
    def of(cls, pipe: Any, name: str | None = None) -> Self:
        """The denoiser of a pipeline, whose network it shares; `name` is what the model was loaded by, if anything."""
        denoiser = cls(getattr(pipe, cls.network), Process.of(pipe.scheduler), Conditioning(), pipe)
        denoiser.empty, denoiser._name = denoiser.encode_text([""]), name
        return denoiser

    @property
    def pipe(self) -> Any:
        """The whole pipeline; RecipeError where there is only the network."""
        if self._pipe is None:
            kind = type(self).__name__
            raise RecipeError(f"this denoiser is a network alone, without text encoder and VAE: use {kind}.of")
        return self._pipe

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz; here that of a VAE which makes them."""
        return self.pipe.vae.config.sampling_rate

    @property
    def others(self) -> Sequence[nn.Module]:
        """All networks of the pipeline but the one that is trained."""
        parts = () if self._pipe is None else self._pipe.components.values()
        return [part for part in parts if isinstance(part, nn.Module) and part is not self.module]

    @property
    def fingerprint(self) -> str:
        """A hash of the weights that the model was loaded from, or else of the parts by which data is encoded."""
        if self._fingerprint is None and self._name is not None:
            self._fingerprint = weights_fingerprint(self._name)
        elif self._fingerprint is None:
            self._fingerprint = content_id(*(module_hash(getattr(self.pipe, part)) for part in self.frozen))
        return self._fingerprint

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """As the protocol has it."""
        raise NotImplementedError

    def prepare(self, precision: Precision, shape: Sequence[int]) -> None:
        """The frozen parts keep no gradients of their own: those of a reward pass through them to the latents."""
        for part in self.others:
            part.requires_grad_(False)

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes the network in diffusers' layout."""
        network = self.module
        if weights is not None:
            network = type(network).from_config(network.config)
            network.load_state_dict(weights)
        network.eval().save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Takes the weights of a folder that `save` wrote; raises as diffusers does for anything else."""
        weights = type(self.module).from_pretrained(folder, local_files_only=True).state_dict()
        self.module.load_state_dict(weights)

    def save_model(self, folder: Path) -> None:
        """Writes the whole pipeline in diffusers' layout, with the network as it is now, and where diffusers finds a
        class that is not its own.
        """
        self.pipe.save_pretrained(folder)
        kind = type(self.pipe)
        if kind.__module__.startswith("milonga."):
            lines = PIPELINE.format(module=kind.__module__, kind=kind.__name__)
            (folder / "pipeline.py").write_text(lines, encoding="utf-8")
