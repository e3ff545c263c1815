"""One shard of clips, made by a model and written into a stage's folder."""

from collections.abc import Sequence

from milonga.core.audio import clip_table, to_int16
from milonga.core.errors import AudioError
from milonga.core.protocols import Model
from milonga.core.records import Refusal, Request
from milonga.core.store import Run


def make_clips(run: Run, stage: str, name: str, requests: Sequence[Request], model: Model, batch: int) -> int:
    """Generates one shard of clips into `stage`; its refusals are written first, so that the shard vouches for both."""
    from milonga.preference.generate import generate as generated

    made, refused = [], []
    for request, clip, latents in generated(requests, model, batch):
        try:
            to_int16(clip.waveform)
            made.append((request.id, clip, latents))
        except AudioError as error:
            refused.append(Refusal(stage=stage, id=request.id, reason=str(error)))
    if refused:
        run.stage(f"refused/{stage}").write_records(name, refused, Refusal)
    ids, clips, latents = zip(*made, strict=True) if made else ((), (), ())
    run.stage(stage).write_table(name, clip_table(ids, clips, latents))
    return len(requests)
