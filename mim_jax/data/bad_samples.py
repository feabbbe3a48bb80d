"""What the decoders reported: bad records are listed once, in DIR/bad_samples.jsonl, and stop the run above a share."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mim_jax.errors import InputError, RunError

NAMED = 20  # names kept of each kind of note
ENOUGH = 64  # records to judge by, unless one epoch is less


@dataclass
class Report:
    """What happened to the rows of one batch on this host."""

    seen: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    notes: list[tuple[str, str]] = field(default_factory=list)  # (name, kind)


class Bad:
    """Book-keeping over the reports of a run.

    Args:
        path: the list, one {"name", "reason"} a line; what it holds from before a restart is not listed again.
        where: what is read, for messages.
        size: records of one epoch.
        max_share: of bad records; more stop the run.
    """

    def __init__(self, path: str | Path, where: str, size: int, max_share: float = 0.5):
        self.path, self.where, self.max_share = Path(path), where, max_share
        self.size, self.enough = size, min(size, ENOUGH)
        self.seen = self.bad = 0  # rows in this process
        self.notes: Counter[str] = Counter()  # over the first epoch of this process
        self.named: dict[str, list[str]] = {}  # the first names of each note
        self.listed = {json.loads(line)['name'] for line in _whole_lines(self.path)}

    @property
    def share(self) -> float:
        """Bad rows among those seen by this process."""
        return self.bad / max(1, self.seen)

    def add(self, report: Report) -> list[tuple[str, str]]:
        """Counts a report and gives back the bad records (name, reason) that are new to the list.

        Raises:
            InputError: nothing readable so far, in 64 records or one epoch.
            RunError: more than `max_share` is bad.
        """
        if self.seen < self.size:
            for name, kind in report.notes:
                self.notes[kind] += 1
                names = self.named.setdefault(kind, [])
                if len(names) < NAMED and name not in names:
                    names.append(name)
        self.seen += report.seen
        self.bad += len(report.bad)
        new = self._enter(report.bad)
        self._check(report)
        return new

    def left_out(self, bad: Sequence[tuple[str, str]], count: int) -> None:
        """Lists the (name, reason) of what was found unusable among `count`, before any batch.

        Raises:
            RunError: more than `max_share` is.
        """
        self._enter(bad)
        if len(bad) > self.max_share * count:
            raise RunError(f'{self.where}: {len(bad)} of {count} records are bad, more than data.max_bad_share={self.max_share}, as {bad[0][0]} ({bad[0][1]}); see {self.path}')  # fmt: skip

    def _enter(self, bad: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        new = list({name: reason for name, reason in bad if name not in self.listed}.items())
        if new:
            self.listed.update(name for name, _ in new)
            with self.path.open('a', encoding='utf-8') as file:
                file.writelines(json.dumps(dict(name=name, reason=reason)) + '\n' for name, reason in new)
        return new

    def _check(self, report: Report) -> None:
        if not report.bad or self.seen < self.enough:
            return
        name, reason = report.bad[0]
        if self.bad == self.seen:
            raise InputError(
                f'no readable record in {self.where}: all of the first {self.seen} records are bad, as {name} ({reason}); see {self.path}'
            )
        if self.share > self.max_share:
            raise RunError(f'{self.where}: {self.bad} of {self.seen} records are bad, more than data.max_bad_share={self.max_share}, as {name} ({reason}); see {self.path}')  # fmt: skip


def _whole_lines(path: Path) -> list[str]:
    """The lines of a list that may end in half a line, where a run was killed; that half is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b'\n') + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
    return whole.decode().splitlines()
