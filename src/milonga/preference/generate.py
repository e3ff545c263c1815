"""Generate (§4.1.1): requests in, clips out, batched by equal steps and guidance, whatever the order asked."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from milonga.core.audio import pack_latents
from milonga.core.protocols import Model
from milonga.core.records import Clip, Request


def generate(requests: Sequence[Request], model: Model, batch: int) -> Iterator[tuple[Request, Clip, bytes | None]]:
    """Each request with its clip and its latents as raw float16 bytes (None where the model has none).

    Requests are sorted by steps and guidance so that a batch of at most `batch` shares them; a clip depends on its own
    request alone.
    """
    ordered = sorted(requests, key=lambda request: (request.steps, request.guidance, request.id))
    for _, alike in groupby(ordered, key=lambda request: (request.steps, request.guidance)):
        group = list(alike)
        for first in range(0, len(group), batch):
            part = group[first : first + batch]
            for request, clip in zip(part, model.generate(part), strict=True):
                yield request, clip, pack_latents(clip.latents)
