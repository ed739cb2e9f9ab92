"""The errors that people cause and can mend: each names the culprit and the remedy, and the tools print it as one line."""


class UserError(ValueError):
    """Something a user gave does not fit. Subclasses say what."""


class ConfigError(UserError):
    """A config or an option on the command line."""


class CheckpointError(UserError):
    """A checkpoint: missing, unreadable, of another architecture, or one that would execute code."""


class DataError(UserError):
    """A dataset, an annotation file or an image."""
