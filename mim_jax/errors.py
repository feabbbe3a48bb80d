"""The two ways a run may end early; `main` prints either as one sentence."""


class InputError(ValueError):
    """The configuration or the input is wrong: exit status 2."""


class RunError(RuntimeError):
    """The run cannot go on (too many bad records, non-finite loss, full disk): exit status 1."""
