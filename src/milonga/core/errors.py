"""The errors a user may meet, as one tree. Each is one line: what is wrong, where, and what to do.

MilongaError
├── RecipeError       a recipe or an argument is wrong: unknown key, wrong type, value out of range
├── StoreError        a run folder or shard is corrupt, foreign, busy, or does not fit its recipe
├── AudioError        an audio file or waveform cannot be used
├── CheckpointError   a model's files are missing, truncated, renamed or not what they claim to be
├── DataError         captions, metadata or pairs cannot be used
├── ServiceError      a server that a run uses does not answer, or refuses key, model or quota
└── EngineError       the cluster that work should run on is missing, or loses its workers repeatedly
"""


class MilongaError(Exception):
    """Base of all errors that Milonga raises on purpose; the command line prints it as one line and exits 1."""


class MilongaWarning(UserWarning):
    """A non-fatal warning shown to users; the command line prints it as one line."""


def brief(error: BaseException) -> str:
    """Another library's error in one line: its kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


class RecipeError(MilongaError):
    """A recipe or an argument is wrong: an unknown key, a wrong type, a value out of range."""


class StoreError(MilongaError):
    """A run folder or one of its shards is corrupt, busy, or belongs to another recipe."""


class AudioError(MilongaError):
    """An audio file or a waveform cannot be used: missing, undecodable, empty, or of the wrong shape or rate."""


class CheckpointError(MilongaError):
    """A model's files are missing, truncated, renamed, or do not hold what their layout says."""


class DataError(MilongaError):
    """Captions, metadata or pairs cannot be used: missing columns, empty prompts, malformed rows."""


class ServiceError(MilongaError):
    """A server that a run uses does not answer, or refuses key, model or quota, so that a retry is of no use."""


class EngineError(MilongaError):
    """Work cannot run where it should: no cluster answers, no worker fits, or workers die repeatedly."""
