"""The command `studio`: the systems that a user names, offered on the page for one caption."""

from collections.abc import Callable, Sequence
from pathlib import Path

from milonga.experiment.systems import systems
from milonga.studio.server import serve as served
from milonga.studio.studio import Studio
from milonga.studio.worker import System


def serve(names: Sequence[str], folder: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves a studio in `folder` until interrupted; `ready` is given its link.

    Raises RecipeError or CheckpointError for a system that is not there, StoreError where the folder cannot be
    written, ServiceError where the port cannot be had.
    """
    served(Studio(folder, offered(names)), host, port, ready)


def offered(names: Sequence[str]) -> list[System]:
    """The systems as the studio takes them; no model is loaded before it is asked for a clip."""
    return [System(one.name, one.fingerprint(), *one.sampling(), one.load) for one in systems(names)]
