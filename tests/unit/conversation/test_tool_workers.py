"""Tools in processes of their own: results in order, calls side by side; one that hangs or crashes harms no other."""

import logging
import multiprocessing
import os
import signal
import sys

import pytest

from mmrl_core.conversation.tool_workers import Call, ToolWorkers
from mmrl_core.conversation.tools import Question, ToolContext
from mmrl_core.errors import PluginError, ToolError
from mmrl_core.plugins import load_plugins

TOOLS = '''
import os
import signal
import threading
import time
from pathlib import Path

from pydantic import BaseModel

from mmrl_core.errors import MediaError, ToolError
from mmrl_core.conversation.tools import Question, Tool

class Number(BaseModel):
    number: int = 0

def text(value):
    return [{"type": "text", "text": str(value)}]

class Probe(Tool):
    description, arguments = "A probe.", Number

class Echo(Probe):
    name = "echo"
    def run(self, arguments, context):
        return text(f"{arguments.number} of {context.sample['id']}")

class Ready(Probe):
    name = "ready"
    num_starts = 0
    def start(self):
        self.num_starts += 1
    def run(self, arguments, context):
        return text(self.num_starts)

class Ask(Probe):
    name = "ask"
    def run(self, arguments, context):
        return Question([{"role": "user", "content": text("what?")}], max_tokens=arguments.number)

class Meet(Probe):
    """Waits until another call has come as far."""
    name = "meet"
    def run(self, arguments, context):
        folder = Path(context.media_root)
        (folder / str(arguments.number)).touch()
        while not (folder / str(1 - arguments.number)).exists():
            time.sleep(0.01)
        return text("met")

class Hang(Probe):
    name = "hang"
    def run(self, arguments, context):
        threading.Event().wait()

class Exit(Probe):
    name = "exit"
    def run(self, arguments, context):
        os._exit(3)

class Segfault(Probe):
    name = "segfault"
    def run(self, arguments, context):
        os.kill(os.getpid(), signal.SIGSEGV)

class Refuse(Probe):
    name = "refuse"
    def run(self, arguments, context):
        raise ToolError("there is nothing at that time.")

class Unreadable(Probe):
    name = "unreadable"
    def run(self, arguments, context):
        raise MediaError("cannot read video /secret/clip.mp4: torn")

class Raise(Probe):
    name = "raise"
    def run(self, arguments, context):
        raise KeyError("odd")

class Local(Probe):
    name = "local"
    def run(self, arguments, context):
        return [{"type": "text", "text": "", "more": lambda: 0}]

class Nothing(Probe):
    name = "nothing"
    def run(self, arguments, context):
        return None

class Words(Probe):
    name = "words"
    def run(self, arguments, context):
        return "no parts"

class Print(Probe):
    name = "print"
    def run(self, arguments, context):
        print("loud", flush=True)
        os.write(1, b"louder")
        return text(os.getpid())

class Interrupted(Probe):
    """A terminal's Ctrl-C reaches all processes."""
    name = "interrupted"
    def run(self, arguments, context):
        os.kill(os.getpid(), signal.SIGINT)
        return text("still here")

class Interrupt(Probe):
    name = "interrupt"
    def run(self, arguments, context):
        os.kill(os.getppid(), signal.SIGINT)
        threading.Event().wait()

class Unpicklable(Probe):
    name = "unpicklable"
    def __init__(self):
        self.function = lambda: 0
    def run(self, arguments, context):
        return []
'''

NOT_THERE = """
import multiprocessing
import os

from probe_worker_tools import Echo

if multiprocessing.current_process().name == "mmrl-tools":
    {}

class Lost(Echo):
    name = "lost"
"""


@pytest.fixture(scope="module", autouse=True)
def interruptible():
    """SIGINT raises KeyboardInterrupt, and processes do not inherit that it is ignored, whatever the shell says."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """The module that holds the tools above; processes can import it."""
    site = tmp_path_factory.mktemp("site")
    (site / "probe_worker_tools.py").write_text(TOOLS)
    (site / "probe_raises.py").write_text(NOT_THERE.format("raise ImportError('no codec')"))
    (site / "probe_exits.py").write_text(NOT_THERE.format("os._exit(4)"))
    sys.path.insert(0, str(site))
    import probe_worker_tools

    yield probe_worker_tools
    sys.path.remove(str(site))
    for name in ("probe_worker_tools", "probe_raises", "probe_exits"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tools(probes):
    return [probe() for probe in probes.Probe.__subclasses__() if probe is not probes.Unpicklable]


@pytest.fixture(scope="module")
def workers(tools):
    """Two processes, patient enough for a busy machine."""
    made = ToolWorkers(tools, num_workers=2, timeout_s=60)
    yield made
    made.close()


@pytest.fixture
def call(tools, probes):
    places = {tool.name: place for place, tool in enumerate(tools)}

    def made(name, number=0, root=None, sample=None):
        return Call(places[name], probes.Number(number=number), ToolContext(sample or {"id": 5}, [], root))

    return made


def processes():
    return [process for process in multiprocessing.active_children() if process.name == "mmrl-tools"]


def texts(results):
    return [str(result) if isinstance(result, ToolError) else result[0]["text"] for result in results]


def test_results_come_in_the_order_of_the_calls(workers, call):
    assert texts(workers.run([call("echo", number) for number in range(7)])) == [f"{n} of 5" for n in range(7)]
    assert workers.run([call("ask", 9)]) == [
        Question([{"role": "user", "content": [{"type": "text", "text": "what?"}]}], max_tokens=9)
    ]
    assert workers.run([]) == []


def test_a_tool_is_started_once_in_a_process(workers, call):
    assert texts(workers.run([call("ready")] * 4)) == ["1"] * 4


def test_calls_run_side_by_side(workers, call, tmp_path):
    results = workers.run([call("meet", 0, str(tmp_path)), call("meet", 1, str(tmp_path))])
    assert texts(results) == ["met", "met"] and len(processes()) == 2


@pytest.mark.parametrize("name", ["exit", "segfault"])
def test_a_crash_is_answered_and_the_next_call_done(workers, call, name, caplog):
    results = workers.run([call("echo", 1), call(name), call("echo", 2)])
    assert texts(results) == ["1 of 5", "the tool crashed.", "2 of 5"] and isinstance(results[1], ToolError)
    assert name in caplog.text
    assert texts(workers.run([call("echo", 3), call("echo", 4)])) == ["3 of 5", "4 of 5"]


def test_what_a_tool_raises_is_told_as_far_as_the_policy_may_know(workers, call, caplog):
    caplog.set_level(logging.WARNING)
    results = workers.run([call(name) for name in ("refuse", "unreadable", "raise", "local", "nothing", "words")])
    assert all(isinstance(result, ToolError) for result in results)
    assert texts(results) == [
        "there is nothing at that time.",
        "the file cannot be read.",
        *["the tool failed."] * 4,
    ]
    logged = sorted(record.message.partition(": ")[0] for record in caplog.records)
    assert logged == [f"tool '{name}'" for name in ("local", "nothing", "raise", "unreadable", "words")]
    for detail in ("/secret/clip.mp4", "KeyError: 'odd'", "not NoneType", "not str"):
        assert detail in caplog.text


def test_a_process_that_was_ended_between_two_calls_is_replaced(workers, call):
    workers.run([call("echo"), call("echo")])
    for process in processes():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert texts(workers.run([call("echo", 1), call("echo", 2)])) == ["1 of 5", "2 of 5"]


def test_an_interrupt_of_a_process_is_not_its_own_affair(workers, call):
    assert texts(workers.run([call("interrupted")])) == ["still here"]


def test_a_hanging_call_is_stopped_and_the_others_done(tools, call):
    workers = ToolWorkers(tools, num_workers=2, timeout_s=1.5)
    try:
        results = workers.run([call("hang"), call("echo", 1), call("echo", 2)])
        assert texts(results) == ["the call was stopped after 1.5 s.", "1 of 5", "2 of 5"]
        assert isinstance(results[0], ToolError)
        assert texts(workers.run([call("echo", 3)])) == ["3 of 5"]
    finally:
        workers.close()


def test_nothing_of_an_interrupted_run_is_taken_for_a_later_result(tools, call):
    before = len(processes())
    workers = ToolWorkers(tools, num_workers=2, timeout_s=60)
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.run([call("hang"), call("interrupt")])
        assert len(processes()) == before
        assert texts(workers.run([call("echo", 1)])) == ["1 of 5"]
        with pytest.raises(PluginError, match=r"a call of a tool cannot be sent.*lambda"):
            workers.run([call("echo", 2), call("echo", 3, sample={"id": lambda: 0})])
        assert len(processes()) == before
    finally:
        workers.close()


def test_what_a_tool_prints_stays_out_of_the_commands_output_and_close_leaves_no_process(tools, call, capfd):
    before = len(processes())
    workers = ToolWorkers(tools, num_workers=1, timeout_s=60)
    (pid,) = texts(workers.run([call("print")]))
    assert len(processes()) == before + 1
    workers.close()
    workers.close()
    assert len(processes()) == before
    with pytest.raises(ProcessLookupError):  # not even a zombie
        os.kill(int(pid), 0)
    written = capfd.readouterr()
    assert written.out == "" and "loud" in written.err and "louder" in written.err


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("probe_worker_tools:Unpicklable", r"cannot be sent to its process: .*lambda"),
        ("probe_raises:Lost", "do not start: ImportError: no codec"),
        ("probe_exits:Lost", "do not start: their process ended with 4"),
    ],
)
def test_tools_that_cannot_start_are_a_plugins_error(probes, module, why):
    name, _, attribute = module.partition(":")
    tool = getattr(__import__(name), attribute)()
    before = len(processes())
    workers = ToolWorkers([tool], num_workers=2, timeout_s=60)
    calls = [Call(0, probes.Number(), ToolContext({}, []))] * 2
    with pytest.raises(PluginError, match=why):
        workers.run(calls)
    assert len(processes()) == before


def test_a_tool_of_a_file_that_a_config_names_runs_too(probes, tmp_path):
    (tmp_path / "own.py").write_text(TOOLS)
    made = load_plugins().registry.get("tool", f"{tmp_path / 'own.py'}:Echo").load()()
    workers = ToolWorkers([made], num_workers=1, timeout_s=60)
    try:
        arguments = type(made).arguments(number=8)
        assert texts(workers.run([Call(0, arguments, ToolContext({"id": 1}, []))])) == ["8 of 1"]
    finally:
        workers.close()
