"""One shard of clips, made by a model and written into a stage's folder."""

from collections.abc import Sequence

from milonga.app.context import Context
from milonga.core.audio import to_int16
from milonga.core.clips import clip_table
from milonga.core.errors import AudioError
from milonga.core.parts import Model
from milonga.core.records import Refusal, Request


def make_clips(context: Context, stage: str, name: str, requests: Sequence[Request], model: Model) -> int:
    """Generates one shard of clips into `stage`; its refusals are written first, so that the shard vouches for both."""
    from milonga.stages.generate import generate as generated

    made, refused = [], []
    for request, clip, latents in generated(requests, model, context.recipe.generate.batch):
        try:
            to_int16(clip.waveform)
            made.append((request.id, clip, latents))
        except AudioError as error:
            refused.append(Refusal(stage=stage, id=request.id, reason=str(error)))
    if refused:
        context.run.stage(f"refused/{stage}").write_records(name, refused, Refusal)
    ids, clips, latents = zip(*made, strict=True) if made else ((), (), ())
    context.run.stage(stage).write_table(name, clip_table(ids, clips, latents))
    return len(requests)
