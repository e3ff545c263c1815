"""Encoded captions, kept: each caption passes the text encoder once, whatever is trained and however often."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from milonga.core.ids import content_id
from milonga.core.progress import tracked
from milonga.core.store import Run, cut

if TYPE_CHECKING:
    import pyarrow
    import torch

    from milonga.models.tango import TangoPipeline

SHARD = 256  # captions in a shard, which is what a stop may cost


def kept_texts(
    whole: "TangoPipeline", run: Run, texts: Sequence[str]
) -> "Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]":
    """A function from captions among `texts` to their states (B, L, D), float32, and mask (B, L).

    Each caption is encoded alone, without dropout, so its states depend on nothing else; they are kept in `run`, in
    shards named by the captions. A run belongs to one model.
    """
    from milonga.data.examples import padded

    wanted = sorted(set(texts))
    shards = run.stage(f"texts/{content_id(wanted)}")
    parts = cut(wanted, SHARD)
    missing = [name for name in parts if not shards.has(name)]
    if missing:
        with tracked("encode captions", sum(len(parts[name]) for name in missing)) as advance:
            for name in missing:
                shards.write_table(name, _table(whole, parts[name]))
                advance(len(parts[name]))
    rows = [row for name in parts for row in shards.read_table(name).to_pylist()]
    known = {text: _states(row) for text, row in zip(wanted, rows, strict=True)}
    return lambda asked: padded([known[text] for text in asked])


def _table(whole: "TangoPipeline", texts: Sequence[str]) -> "pyarrow.Table":
    """The states of captions as raw float32, with how many tokens each has."""
    import pyarrow as pa

    states = [whole.encode_prompt([text])[0][0].float().cpu().numpy() for text in texts]
    return pa.table({"tokens": [len(one) for one in states], "states": [one.tobytes() for one in states]})


def _states(row: dict) -> "torch.Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.frombuffer(row["states"], dtype=np.float32).reshape(row["tokens"], -1).copy())
