"""vLLM in a process of its own: equal results, and a new process where the old one was killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import VLLMEngine
from mmrl_core.language_model.engines import vllm_server
from mmrl_core.types import Sampling

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def served(make_policy, prompts):
    policy = make_policy("qwen2_5_vl", VLLMEngine(mode="server", memory_gib=0.05), max_prompt_tokens=600)
    policy.rollout(prompts("qwen2_5_vl")[:1], 2, Sampling(400))
    yield policy
    policy.close()


def kill(policy):
    os.kill(policy.engine._host._process.pid, signal.SIGKILL)


def roll_out(policy, prompts, sampling):
    policy.publish_weights()
    return policy.rollout(prompts("qwen2_5_vl"), 4, sampling)


def test_a_server_follows_the_weights(served, prompts, helpers):
    before = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    assert helpers.largest_difference(served, before) < TOLERANCE
    helpers.change_weights(served)
    after = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    assert helpers.largest_difference(served, before) > 0.05
    assert helpers.largest_difference(served, after) < TOLERANCE


def test_a_failing_listener_leaves_no_answers_behind(served, prompts, helpers):
    def fail(index, samples):
        raise LookupError

    with pytest.raises(LookupError):
        helpers.generate(served, prompts("qwen2_5_vl"), 4, Sampling(12, seed=9), fail)
    rows = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    assert [row.prompt_id for row in rows[::4]] == [prompt.id for prompt in prompts("qwen2_5_vl")]
    assert helpers.largest_difference(served, rows) < TOLERANCE


def test_a_refused_prompt_is_an_error_and_not_the_end(served, prompts, helpers):
    process = served.engine._host._process
    with pytest.raises(PolicyError, match=r"vLLM refuses a prompt: top_k must be"):
        roll_out(served, prompts, Sampling(12, top_k=-7))
    assert served.engine._host._process is process
    assert helpers.largest_difference(served, helpers.rows_of(roll_out(served, prompts, Sampling(12)))) < TOLERANCE


def test_a_server_killed_while_it_samples_is_started_again(served, prompts, helpers, monkeypatch, capfd):
    """The weights have changed since the start; the answers are those of an undisturbed rollout, each told once."""
    monkeypatch.setattr(served.model, "stop_ids", set())
    sampling = Sampling(400, seed=3)
    undisturbed = helpers.told(served, prompts("qwen2_5_vl"), 4, sampling)
    first = served.engine._host._process.pid
    timer = threading.Timer(0.5, kill, [served])
    timer.start()
    answers = helpers.told(served, prompts("qwen2_5_vl"), 4, sampling)
    timer.join()
    assert served.engine._host._process.pid != first
    assert capfd.readouterr().out == "the vLLM server is started again: it was ended by signal 9\n"
    assert sorted(index for index, _ in answers) == [0, 1, 2]
    for index, again in answers:
        for sample, repeated in zip(dict(undisturbed)[index], again, strict=True):
            assert torch.equal(sample.tokens, repeated.tokens) and len(sample.tokens) == 400
            assert torch.allclose(sample.logprobs, repeated.logprobs, atol=TOLERANCE)


def test_a_conversation_goes_on_with_another_server(served, helpers, monkeypatch, capfd):
    """The second turn of a server that knows nothing of the first is the same."""
    prompts = [
        helpers.make_prompt("picture", "What is this?", [helpers.picture(1, 84, 56)]),
        helpers.make_prompt("video", "What moves here?", videos=[helpers.clip(2)]),
    ]
    replies = [[helpers.part("look"), helpers.part(helpers.picture(3))], [helpers.part(helpers.clip(4))]]

    def conversations():
        return helpers.rows_of(helpers.converse(served, prompts, replies, Sampling(12, seed=2)))

    undisturbed = conversations()
    assert {row.step_index for row in undisturbed} == {0, 1, 2}
    assert helpers.largest_difference(served, undisturbed) < TOLERANCE
    observe, first = served.observe, served.engine._host._process.pid

    def observe_and_kill(*arguments):
        if served.engine._host._process.pid == first:
            kill(served)
        return observe(*arguments)

    monkeypatch.setattr(served, "observe", observe_and_kill)
    rows = conversations()
    assert served.engine._host._process.pid != first
    assert capfd.readouterr().out.count("started again") == 1
    assert [row.action.tolist() for row in rows] == [row.action.tolist() for row in undisturbed]
    assert helpers.largest_difference(served, rows) < TOLERANCE


def test_a_server_that_ends_twice_ends_the_run_with_its_log(served, prompts, monkeypatch, capfd):
    generate = vllm_server.RemoteHost.generate

    def killed(host, job):
        os.kill(host._process.pid, signal.SIGKILL)
        host._process.wait()
        return generate(host, job)

    monkeypatch.setattr(vllm_server.RemoteHost, "generate", killed)
    with pytest.raises(
        PolicyError, match=re.compile(r"ended twice in one rollout; it was ended by signal 9\n.+", re.S)
    ):
        roll_out(served, prompts, Sampling(12))
    assert capfd.readouterr().out.count("started again") == 1


def test_a_server_at_an_address_serves_one_run_after_the_other(make_policy, prompts, helpers, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = [sys.executable, "-m", "mmrl_core.language_model.engines.vllm_server", address]
    without_key = subprocess.run(server, capture_output=True, text=True)
    assert without_key.returncode != 0 and "set MMRL_VLLM_KEY" in without_key.stderr
    monkeypatch.setenv("MMRL_VLLM_KEY", "some secret")
    process = subprocess.Popen(server, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(address)
        monkeypatch.setenv("MMRL_VLLM_KEY", "another secret")
        with pytest.raises(PolicyError, match=f"no vLLM server can be used at {address}"):
            make_policy("qwen2", VLLMEngine(mode="server", address=address)).rollout(prompts("qwen2"), 2, Sampling(4))
        monkeypatch.setenv("MMRL_VLLM_KEY", "some secret")
        for _ in range(2):
            policy = make_policy("qwen2", VLLMEngine(mode="server", address=address, memory_gib=0.05))
            rows = helpers.rows_of(policy.rollout(prompts("qwen2"), 2, Sampling(12)))
            assert helpers.largest_difference(policy, rows) < TOLERANCE
            policy.close()
            wait_for(address)
    finally:
        process.kill()
        process.wait()


def wait_for(address, timeout_s=60.0):
    """Until somebody listens; a connection that says nothing is refused by the server, which goes on."""
    import time

    host, port = address.split(":")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens at {address}"
            time.sleep(0.2)
