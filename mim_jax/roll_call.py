"""The roll call of the hosts of a run, before JAX makes them one: who has come, and do all of them want the same.

Host 0 listens at the address where the coordination service of JAX is going to be. Every other host says who it is in one line of
JSON, and is told in one line what they are called, or what is wrong. JAX itself only knows that not all came, and then ends the process.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping

from mim_jax.errors import InputError, RunError

PATIENCE = 5.0  # seconds for one connection, or one line
PROBLEMS = dict(InputError=InputError, RunError=RunError)


def meet(address: str, number: int, count: int, facts: Mapping, timeout: float, bind: str = '') -> list[str]:
    """Waits until all hosts have come.

    Args:
        address: 'NAME:PORT' of host 0.
        number: of this host.
        count: of hosts.
        facts: what has to be the same on all of them, {'config.seed': 0, 'jax': '0.10.2', ...}.
        timeout: in seconds.
        bind: 'NAME:PORT' at which host 0 listens, if not at this port of all its addresses.

    Returns:
        What to call each host, 'NAME, process 123'.

    Raises:
        InputError: two hosts differ, or say that they are the same host.
        RunError: not all have come, or host 0 cannot be reached.
    """
    own = dict(number=number, count=count, name=f'{socket.gethostname()}, process {os.getpid()}', facts=dict(facts))
    told = answer(address, own, timeout) if number else call(address, own, count, timeout, bind)
    if 'problem' in told:
        raise PROBLEMS[told['kind']](told['problem'])
    return told['names']


def call(address: str, own: dict, count: int, timeout: float, bind: str = '') -> dict:
    """Host 0: listens until all are here or the time is over, and tells all what `verdict` says."""
    end, came, twice, lines, latest = time.monotonic() + timeout, {0: own}, [], [], {}
    with listening(bind or f':{split(address)[1]}') as server, contextlib.ExitStack() as closing:
        while len(came) < count and not twice and (line := next_line(server, end)):
            closing.enter_context(line)
            said = heard(line)
            if said is None:
                continue
            who = said['number']
            if who == 0 or who in latest and open_still(latest[who]):
                twice = [who, came[who]['name'], said['name']]
            else:  # new, or it had to start again
                came[who], latest[who] = said, line
            lines.append(line)
        told = verdict(address, came, twice, count, timeout)
        text = json.dumps(told).encode() + b'\n'
        for line in lines:
            tell(line, text)
    return told


def verdict(address: str, came: Mapping[int, dict], twice: list, count: int, timeout: float) -> dict:
    """The names of those who came, or what `check` finds wrong with them, and of which kind it is."""
    try:
        check(address, came, twice, count, timeout)
    except tuple(PROBLEMS.values()) as error:
        return dict(kind=type(error).__name__, problem=str(error))
    return dict(names=[came[who]['name'] for who in range(count)])


def next_line(server: socket.socket, end: float) -> socket.socket | None:
    """The next that calls, or None when the time is over."""
    server.settimeout(max(end - time.monotonic(), 0.01))
    try:
        return server.accept()[0]
    except TimeoutError:
        return None


def answer(address: str, own: dict, timeout: float) -> dict:
    """Another host: says who it is and waits for the verdict of host 0.

    Raises:
        RunError: host 0 cannot be reached.
    """
    end, problem = time.monotonic() + timeout, 'it did not answer'
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection(split(address), min(left, PATIENCE)) as line:
                line.sendall(json.dumps(own).encode() + b'\n')
                line.settimeout(left + 2 * PATIENCE)  # host 0 has begun later, perhaps
                with line.makefile() as text:
                    if (told := text.readline()).endswith('\n'):  # or host 0 ended amid the line
                        return json.loads(told)
        except OSError as error:
            problem = likely(error)
        time.sleep(min(0.3, left))
    raise RunError(
        f'host {own["number"]} ({own["name"]}) could not reach host 0 at {address} within {timeout:.0f} s: {problem}'
    )


def likely(error: OSError) -> str:
    """Why a connection fails, as far as the error tells."""
    if isinstance(error, socket.gaierror):
        return 'no machine is known by that name here; is the address right?'
    if isinstance(error, ConnectionRefusedError):
        return 'the machine is there but nothing listens; has host 0 been started, and with the same address and port?'
    if isinstance(error, TimeoutError):
        return 'nothing answers; a firewall that closes the port, or a wrong address'
    return error.strerror or str(error)


def check(address: str, came: Mapping[int, dict], twice: list, count: int, timeout: float) -> None:
    """Looks whether those who came are those that are wanted.

    Raises:
        InputError: two hosts differ, or say that they are the same host.
        RunError: not all have come.
    """
    if twice:
        number, one, other = twice
        raise InputError(
            f'two processes say that they are host {number} ({one} and {other}): each needs a JAX_PROCESS_ID of its own'
        )
    first = came[0]
    for number, said in sorted(came.items()):
        if said['count'] != first['count']:
            raise InputError(f'host {number} ({said["name"]}) expects {said["count"]} hosts and host 0 ({first["name"]}) {first["count"]}: '
                             'start all with the same number')  # fmt: skip
        for key in sorted(first['facts'].keys() | said['facts'].keys()):
            here, there = (facts.get(key, 'nothing') for facts in (said['facts'], first['facts']))
            if here != there:
                raise InputError(f'host {number} ({said["name"]}) has {key}={here!r} and host 0 ({first["name"]}) {there!r}: '
                                 'all hosts need the same command and the same versions')  # fmt: skip
    missing = [number for number in range(count) if number not in came]
    if missing:
        seen = ', '.join(f'{number} ({said["name"]})' for number, said in sorted(came.items()))
        raise RunError(
            f'{len(came)} of {count} hosts came to {address} within {timeout:.0f} s; missing: {spans(missing)}; here: {seen}. '
            'Was the command started on every host, and can each of them reach this address?'
        )


def spans(numbers: list[int]) -> str:
    """[1, 2, 3, 7] -> '1-3, 7'."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ', '.join(str(a) if a == b else f'{a}-{b}' for a, b in zip(starts, ends, strict=True))


def split(address: str) -> tuple[str, int]:
    """'NAME:PORT' or '[::1]:PORT' -> name and port.

    Raises:
        InputError: it is neither.
    """
    name, _, port = address.rpartition(':')
    if not name or not port.isdecimal():
        raise InputError(f'the address of host 0, {address!r}, is not of the form NAME:PORT')
    return name.strip('[]'), int(port)


@contextlib.contextmanager
def listening(place: str) -> Iterator[socket.socket]:
    """A socket that listens at ':PORT' of all addresses of this machine, or at 'NAME:PORT'.

    Raises:
        RunError: the port cannot be had.
    """
    name, port = place.rpartition(':')[0].strip('[]'), int(place.rpartition(':')[2])
    both = name in ('', '::') and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ':' in name else socket.AF_INET
    try:
        server = socket.create_server(('' if both else name, port), family=family, backlog=4096, dualstack_ipv6=both)
    except OSError as error:
        raise RunError(
            f'host 0 cannot listen at port {port}: {error.strerror}; is an older run still there, or another host 0 on this machine?'
        ) from error
    with server:
        yield server


def heard(line: socket.socket) -> dict | None:
    """What a host says of itself; None where something else knocked."""
    line.settimeout(PATIENCE)
    try:
        with line.makefile() as text:
            said = json.loads(text.readline(1 << 20))
        return said if {'number', 'count', 'name', 'facts'} <= said.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def tell(line: socket.socket, text: bytes) -> None:
    """Tells a host who came and lets it hang up first, so that the port is free at once; who has gone needs no answer."""
    with contextlib.suppress(OSError):
        line.settimeout(PATIENCE)
        line.sendall(text)
        line.recv(1)


def open_still(line: socket.socket) -> bool:
    """Whether the other end has not hung up."""
    line.setblocking(False)
    try:
        return line.recv(1) != b''
    except BlockingIOError:
        return True
    except OSError:
        return False
