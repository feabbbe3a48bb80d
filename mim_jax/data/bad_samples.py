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

    Of several hosts each reports its own rows and has a list of its own, and reads those of the others. All have to judge alike,
    hence by what `count` is told of the rows of all.

    Args:
        path: the list of host 0, one {"name", "reason"} a line; what the lists hold from before a restart is not listed again.
        where: what is read, for messages.
        size: records of one epoch.
        max_share: of bad records; more stop the run.
        host, hosts: this one, and how many there are. The list of host 2 is beside `path`, as bad_samples.2.jsonl.
    """

    def __init__(
        self, path: str | Path, where: str, size: int, max_share: float = 0.5, *, host: int = 0, hosts: int = 1
    ):
        self.path, self.where, self.max_share, self.host, self.hosts = Path(path), where, max_share, host, hosts
        self._lists = self.path.with_name(f'{self.path.stem}*{self.path.suffix}')
        self.path = self.path.with_suffix(f'.{host}{self.path.suffix}') if host else self.path
        self.size, self.enough = size, min(size, ENOUGH)
        self.seen = self.bad = 0  # records in this process, on all hosts
        self.notes: Counter[str] = Counter()  # over the first epoch of this process
        self.named: dict[str, list[str]] = {}  # the first names of each note
        self.listed: set[str] = set()
        self._example = ''
        _cut_off_half_a_line(self.path)
        self.look()

    @property
    def share(self) -> float:
        """Bad records among those seen by this process."""
        return self.bad / max(1, self.seen)

    def add(self, report: Report) -> list[tuple[str, str]]:
        """Books a report and gives back the bad records (name, reason) that are new to the lists; of one host, counts it too.

        Raises:
            InputError, RunError: as `count`.
        """
        if self.seen < self.size:
            for name, kind in report.notes:
                self.notes[kind] += 1
                names = self.named.setdefault(kind, [])
                if len(names) < NAMED and name not in names:
                    names.append(name)
        new = self._enter(report.bad)
        if report.bad:
            self._example = ', as {} ({})'.format(*report.bad[0])
        if self.hosts == 1:
            self.count(report.seen, len(report.bad))
        return new

    def count(self, seen: int, bad: int) -> None:
        """Counts records that were read, on all hosts together, and judges by them.

        Raises:
            InputError: nothing readable so far, in 64 records or one epoch.
            RunError: more than `max_share` is bad.
        """
        self.seen += seen
        self.bad += bad
        if not bad or self.seen < self.enough:
            return
        if self.bad == self.seen:
            raise InputError(
                f'no readable record in {self.where}: all of the first {self.seen} records are bad{self._example}; see {self.lists}'
            )
        if self.share > self.max_share:
            raise RunError(f'{self.where}: {self.bad} of {self.seen} records are bad, more than data.max_bad_share={self.max_share}{self._example}; see {self.lists}')  # fmt: skip

    @property
    def lists(self) -> Path:
        """The list, or what those of several hosts are called."""
        return self.path if self.hosts == 1 else self._lists

    def look(self) -> list[tuple[str, str]]:
        """Reads the lists of all hosts, and gives what is new in them."""
        new = self._unknown(self._entries())
        self.listed.update(new)
        return list(new.items())

    def left_out(self, bad: Sequence[tuple[str, str]], count: int) -> None:
        """Lists the (name, reason) of what was found unusable among `count`, before any batch.

        Raises:
            RunError: more than `max_share` is.
        """
        if self.host == 0:  # all find the same
            self._enter(bad)
        self.listed.update(name for name, _ in bad)
        if len(bad) > self.max_share * count:
            raise RunError(f'{self.where}: {len(bad)} of {count} records are bad, more than data.max_bad_share={self.max_share}, as {bad[0][0]} ({bad[0][1]}); see {self.lists}')  # fmt: skip

    def _enter(self, bad: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        new = self._unknown(dict(bad))
        if new and self.hosts > 1:
            theirs = self._entries()
            new = {name: reason for name, reason in new.items() if name not in theirs}
        if new:
            self.listed.update(new)
            with self.path.open('a', encoding='utf-8') as file:
                file.writelines(json.dumps(dict(name=name, reason=reason)) + '\n' for name, reason in new.items())
        return list(new.items())

    def _unknown(self, records: dict[str, str]) -> dict[str, str]:
        return {name: reason for name, reason in records.items() if name not in self.listed}

    def _entries(self) -> dict[str, str]:
        lines = (json.loads(line) for path in self.path.parent.glob(self._lists.name) for line in _whole_lines(path))
        return {line['name']: line['reason'] for line in lines}


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a list, without half a one at its end, where it is being written or a run was killed."""
    return path.read_bytes().split(b'\n')[:-1]


def _cut_off_half_a_line(path: Path) -> None:
    data = path.read_bytes() if path.exists() else b''
    whole = data[: data.rfind(b'\n') + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
