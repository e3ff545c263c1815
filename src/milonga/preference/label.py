"""Label: which clips are good and which are not, each by itself, from what the tagger hears in them.

It stands where people's labels stand (`milonga listen export --as labels`). BATON asked people such questions of
clips (arXiv 2402.00744): are all events there, and are they in the right order? Here one yes answers both.
"""

from collections.abc import Sequence

from milonga.core.protocols import Tagger
from milonga.core.records import Clip, Label, Prompt
from milonga.maths.metrics import order_accuracy


def label(
    ids: Sequence[str], prompts: Sequence[Prompt], clips: Sequence[Clip], tagger: Tagger, batch: int
) -> list[Label]:
    """A label for each of N clips whose prompt's scene is known: desirable where all of it is heard, in its order."""
    found = []
    for first in range(0, len(clips), batch):
        part = slice(first, first + batch)
        for name, prompt, events in zip(ids[part], prompts[part], tagger.detect(clips[part]), strict=True):
            if prompt.scene:
                found.append(_label(name, prompt, order_accuracy(prompt.scene, events)))
    return found


def _label(name: str, prompt: Prompt, good: bool) -> Label:
    return Label(
        id=name, prompt_id=prompt.id, prompt=prompt.text, system="", desirable=good, opinion=float(good), raters=0
    )
