import os

import pytest

from tests.data.conftest import hostile, shared_images  # noqa: F401 - fixtures
from tests.tools.launched import program


@pytest.fixture
def machine(tmp_path):
    """Environment of a machine whose git, python and uv are stand-ins: the run writes its words to `ran` and ends with `status`."""
    fakes = tmp_path / 'bin'
    program(fakes, 'git', 'for folder; do :; done\n[ "$1" != clone ] || mkdir "$folder"\n')
    program(fakes, 'python3', ':\n')
    program(
        fakes,
        'python',
        f'cd {tmp_path}\n'
        'if [ "$2" = mim_jax.tools.doctor ]; then echo "$@" >>looked; exit "$(cat sick 2>/dev/null || echo 0)"; fi\n'
        'for word; do echo "$word"; done >ran\necho run >>runs\n'
        'trap "echo saved >>saves; exit 143" TERM\n'
        'for _ in $(seq "$(cat tenths 2>/dev/null || echo 0)"); do sleep 0.1; done\n'
        'exit "$(cat status 2>/dev/null || echo 0)"\n',
    )
    program(fakes, 'srun', 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    program(fakes, 'mountpoint', '[ -e "$2/mounted" ]\n')
    program(fakes, 'fusermount', 'exit 1\n')
    program(fakes, 'gcsfuse', f'echo "$@" >>{tmp_path}/mounts\nfor folder; do :; done\ntouch "$folder/mounted"\n')
    program(
        fakes, 'sudo', f'echo "$@" >>{tmp_path}/sudo\ncase $1 in tee) cat >/dev/null ;; apt-get) : ;; *) "$@" ;; esac\n'
    )
    program(fakes, 'scontrol', f'echo "$@" >>{tmp_path}/requeued\n')
    (tmp_path / 'home').mkdir()
    return dict(PATH=f'{fakes}:{os.environ["PATH"]}', HOME=str(tmp_path / 'home'), PAUSE='0')
