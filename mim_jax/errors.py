"""The two ways a run may end early; `main` prints either as one sentence."""


class InputError(ValueError):
    """The configuration or the input is wrong: exit status 2."""


class RunError(RuntimeError):
    """The run cannot go on (too many bad records, non-finite loss, full disk): exit status 1."""


def refuse_url(path: str, of: str) -> None:
    """Buckets are read and written as mounted folders: runs append to files, lock and rename folders, which object stores do not.

    Args:
        path: what was given.
        of: what it was given for, '--workdir='.

    Raises:
        InputError: it is a URL.
    """
    if '://' in path:
        raise InputError(f'{of}{path} is a URL, and has to be a path: mount the bucket and give the path of the mount, as docs/launch.md says')  # fmt: skip
