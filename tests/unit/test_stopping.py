"""Signals: raised where nothing is lost, kept where something would be."""

import os
import signal
import subprocess
import sys

import pytest

from mmrl_core.support import Interrupted, Stopping
from mmrl_core.support.stopping import SIGNALS
from tests.signals import signals_reach_the_run

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138, "SIGXCPU": 152}

pytestmark = pytest.mark.usefixtures(signals_reach_the_run.__name__)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_signals_are_those_that_schedulers_and_people_send():
    assert {number.name for number in SIGNALS} == set(EXIT_CODES)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_where_nothing_is_held_and_everything_is_as_before_after(number):
    before = signal.getsignal(number)
    with Stopping() as stopping, pytest.raises(Interrupted) as caught:
        send(number)
        pytest.fail("went on")
    assert caught.value.exit_code == EXIT_CODES[number.name] and not caught.value.at_once
    assert stopping.pending == number and signal.getsignal(number) == before


def test_a_held_block_is_gone_through_whole(capfd):
    done = []
    with Stopping() as stopping, pytest.raises(Interrupted):
        with stopping.held():
            send(signal.SIGTERM)
            done.append("held")
        done.append("after")
        stopping.check()
        done.append("checked")
    assert done == ["held", "after"]
    assert capfd.readouterr().err == "mmrl: SIGTERM: stopping when the step is saved (again: at once)\n"


def test_an_opened_block_is_left_at_once_until_it_is_closed():
    done = []
    with Stopping() as stopping, stopping.held(), pytest.raises(Interrupted), stopping.opened():
        send(signal.SIGINT)
        done.append("opened")
    with Stopping() as stopping, stopping.held():
        with stopping.opened():
            stopping.close()
            send(signal.SIGINT)
            done.append("closed")
        with pytest.raises(Interrupted), stopping.opened():
            done.append("opened again")
    assert done == ["closed"]


def test_a_second_signal_raises_even_where_the_first_is_held():
    with Stopping() as stopping, pytest.raises(Interrupted) as caught, stopping.held():
        send(signal.SIGTERM)
        send(signal.SIGINT)  # of the same moment: a launcher passes on what the terminal has sent to all
        stopping._since_s -= 60
        send(signal.SIGTERM)
        pytest.fail("went on")
    assert caught.value.at_once


def test_an_ignored_signal_stays_ignored():
    """As `nohup` does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            send(signal.SIGHUP)
        assert stopping.pending is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_except_exception_takes_it_for_an_error():
    code = "from mmrl_core.support import Interrupted\ntry:\n  raise Interrupted(15)\nexcept Exception:\n  pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "Interrupted: SIGTERM" in done.stderr
