"""Programs that a run starts end with it, whatever ends it."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from mmrl_core.support import kill_when_closed

pytestmark = pytest.mark.skipif(not hasattr(fcntl, "F_SETSIG"), reason="the system signals nothing for pipes")

STARTS = """
import os, subprocess, sys, time
from mmrl_core.support import kill_when_closed

its_end, our_end = os.pipe()
program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
child = subprocess.Popen([sys.executable, "-c", program], stdin=its_end, start_new_session=True)
kill_when_closed(its_end, -child.pid)
os.close(its_end)
print(child.pid, flush=True)
time.sleep(60)
"""


def ended(group, limit_s=10.0):
    """Whether all processes of a group end in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_program_and_its_children_end_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True)
    group = int(parent.stdout.readline())
    assert not ended(group, limit_s=0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ended(group)


def test_a_program_ends_when_the_pipe_is_closed():
    its_end, our_end = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=its_end)
    kill_when_closed(its_end, child.pid)
    os.close(its_end)
    assert child.poll() is None
    os.close(our_end)
    assert child.wait(timeout=10) == -signal.SIGKILL
