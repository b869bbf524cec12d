"""The stream of prompts: what is drawn when, in which thread, and where errors come up."""

import threading

import pytest

from mmrl_core.data.draw import Draw
from mmrl_core.data.stream import PromptStream
from mmrl_core.errors import TaskDataError
from mmrl_core.types import Prompt

WAIT_S = 30
"""Where a thread is waited for; only a test that fails waits so long."""


class Source:
    """Draws two prompts a step and remembers where, in which thread; told to, it waits or raises at a position."""

    def __init__(self):
        self.drawn = []
        self.prepared = []
        self.threads = []
        self.broken = {}
        self.gates = {}
        self.read = {}  # position -> set once prompts there have been prepared

    def draw(self, position):
        self.threads.append(threading.get_ident())
        self.drawn.append(position)
        if position in self.broken:
            raise self.broken[position]
        return Draw([Prompt(f"p{position + place}", [], {}) for place in range(2)], position + 2, 0, ())

    def prepare(self, prompts):
        position = int(prompts[0].id[1:])
        if position in self.gates:
            assert self.gates[position].wait(WAIT_S)
        self.prepared.append([prompt.id for prompt in prompts])
        self.event(position).set()
        if -position in self.broken:
            raise self.broken[-position]

    def event(self, position):
        return self.read.setdefault(position, threading.Event())


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def stream(source):
    made = PromptStream(source.draw, source.prepare)
    yield made
    for gate in source.gates.values():
        gate.set()
    made.close()


def ids(draw):
    return [prompt.id for prompt in draw.prompts]


def test_the_next_draw_is_read_and_prepared_in_another_thread_before_it_is_asked_for(stream, source):
    assert ids(stream.take(0)) == ["p0", "p1"]
    assert source.event(2).wait(WAIT_S)  # nobody has asked for it
    assert source.prepared == [["p0", "p1"], ["p2", "p3"]]
    here, ahead = source.threads
    assert here == threading.get_ident() != ahead
    drawn = stream.take(2)
    assert ids(drawn) == ["p2", "p3"] and drawn.position == 4
    assert source.event(4).wait(WAIT_S)
    assert source.drawn == [0, 2, 4], "each draw is read once"


def test_a_draw_that_is_still_being_read_is_waited_for_and_not_read_twice(stream, source):
    gate = source.gates[2] = threading.Event()
    stream.take(0)
    taken = []
    taking = threading.Thread(target=lambda: taken.append(ids(stream.take(2))))
    taking.start()
    assert taken == []
    gate.set()
    taking.join(WAIT_S)
    assert taken == [["p2", "p3"]] and source.drawn[:2] == [0, 2] and source.drawn.count(2) == 1


def test_a_position_that_was_not_foreseen_is_drawn_anew(stream, source):
    stream.take(0)
    assert ids(stream.take(10)) == ["p10", "p11"]
    assert ids(stream.take(12)) == ["p12", "p13"]
    assert ids(stream.take(2)) == ["p2", "p3"]  # what was read ahead at first is forgotten
    assert source.event(4).wait(WAIT_S)
    assert sorted(source.drawn) == [0, 2, 2, 4, 10, 12, 14]
    assert ["p2", "p3"] in source.prepared


def test_the_same_position_can_be_drawn_again(stream, source):
    assert ids(stream.take(0)) == ids(stream.take(0)) == ["p0", "p1"]


@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_ahead_comes_up_when_its_position_is_taken_and_not_before(stream, source, sign):
    """Of the draw, or of preparing what was drawn."""
    source.broken[sign * 4] = TaskDataError("row 4 is broken")
    assert ids(stream.take(0)) == ["p0", "p1"]
    assert ids(stream.take(2)) == ["p2", "p3"]
    for _ in range(2):  # asking again does not get around it
        with pytest.raises(TaskDataError, match="row 4 is broken"):
            stream.take(4)
    assert ids(stream.take(6)) == ["p6", "p7"]


@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_at_a_position_that_is_not_taken_is_never_seen(stream, source, sign):
    source.broken[sign * 2] = TaskDataError("row 2 is broken")
    stream.take(0)
    assert ids(stream.take(10)) == ["p10", "p11"]
    stream.close()


def test_closing_waits_for_the_draw_under_way_and_forgets_it(source):
    stream = PromptStream(source.draw, source.prepare)
    gate = source.gates[2] = threading.Event()
    source.broken[-2] = TaskDataError("row 2 is broken")
    stream.take(0)
    threading.Timer(0.1, gate.set).start()
    stream.close()  # the error is of a draw that nobody wants any more
    assert source.event(2).is_set() and source.prepared == [["p0", "p1"], ["p2", "p3"]]
    stream.close()


def test_closing_a_stream_that_was_never_used_is_allowed(stream, source):
    stream.close()
    assert source.drawn == []
