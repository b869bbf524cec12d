"""vLLM behind `vllm serve`: logprobs of the trainer, weights by vLLM's transfer, and a new server for a killed one."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import VLLMEngine
from mmrl_core.language_model.engines.vllm_host import ServerLostError
from mmrl_core.language_model.engines.vllm_http import Server
from mmrl_core.language_model.engines.vllm_plugin import EmptyLoader, WorkerExtension
from mmrl_core.types import Sampling

TOLERANCE = 1e-4  # as in test_vllm_engine.py


@pytest.fixture(scope="module")
def served(make_policy, prompts):
    policy = make_policy("qwen2_5_vl", VLLMEngine(mode="server", memory_gib=0.05), max_prompt_tokens=600)
    policy.rollout(prompts("qwen2_5_vl")[:1], 2, Sampling(400))
    yield policy
    policy.close()


@pytest.fixture
def weights_restored(served):
    before = {name: weight.clone() for name, weight in served.model.state_dict().items()}
    yield
    served.model.load_state_dict(before)
    served.publish_weights()


def popen(policy):
    return policy.engine._host._process.popen


def kill(policy):
    os.killpg(popen(policy).pid, signal.SIGKILL)


def roll_out(policy, prompts, sampling):
    policy.set_temperature(sampling.temperature or 1.0)
    policy.publish_weights()
    return policy.rollout(prompts("qwen2_5_vl"), 4, sampling)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(12, seed=1), Sampling(12, temperature=0.7, top_p=0.8, top_k=50, seed=2), Sampling(12, 0.0)],
    ids=["at_1", "truncated_at_0.7", "greedy"],
)
def test_logprobs_are_the_trainers(served, prompts, helpers, sampling):
    rows = helpers.rows_of(roll_out(served, prompts, sampling))
    for row in rows:
        tokens = row.action.tolist()
        assert not served.model.stop_ids & set(tokens[:-1])
        assert row.truncated == (tokens[-1] not in served.model.stop_ids) and len(tokens) <= 12
    assert helpers.largest_difference(served, rows) < TOLERANCE


def test_rollouts_at_different_temperatures_at_once(served, prompts, helpers):
    """As of several training processes, of which one already evaluates."""
    found = {}

    def one(sampling):
        found[sampling] = helpers.told(served, prompts("qwen2_5_vl"), 4, sampling)

    samplings = [Sampling(60, temperature=0.5, seed=1), Sampling(60, temperature=2.0, seed=2)]
    threads = [threading.Thread(target=one, args=(sampling,)) for sampling in samplings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sampling in samplings:
        alone = dict(helpers.told(served, prompts("qwen2_5_vl"), 4, sampling))
        for index, samples in found[sampling]:
            for sample, other in zip(samples, alone[index], strict=True):
                assert torch.equal(sample.tokens, other.tokens)
                assert torch.allclose(sample.logprobs, other.logprobs, atol=TOLERANCE)


def test_media_placeholders_are_never_sampled(served, weights_restored, prompts, helpers):
    """Although they are made far likelier than all other tokens; the logprobs still are of the whole distribution."""
    with torch.no_grad():
        served.model.base.get_output_embeddings().weight[served.model.banned_ids, 0] = 2.0
    rows = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    assert not torch.isin(torch.cat([row.action for row in rows]), served.model.banned_ids).any()
    assert max(float(row.sampler_logprobs.max()) for row in rows) < -2.0
    assert helpers.largest_difference(served, rows) < TOLERANCE


def test_a_server_follows_the_weights(served, weights_restored, prompts, helpers):
    """The vision tower's too, although the pictures were seen before."""
    before = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    helpers.change_weights(served)
    assert helpers.largest_difference(served, before) > 0.05
    after = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    assert helpers.largest_difference(served, after) < TOLERANCE


def test_requests_under_way_are_finished_before_the_weights_change(
    served, weights_restored, prompts, monkeypatch, helpers
):
    """None is lost, and each has the logprobs of the weights that it began with."""
    monkeypatch.setattr(served.model, "stop_ids", set())
    sampling, heard = Sampling(400, seed=3), []
    undisturbed = dict(helpers.told(served, prompts("qwen2_5_vl"), 4, sampling))
    thread = threading.Thread(target=lambda: heard.extend(helpers.told(served, prompts("qwen2_5_vl"), 4, sampling)))
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive() and not heard
    helpers.change_weights(served)
    served.publish_weights()
    thread.join()
    assert sorted(index for index, _ in heard) == [0, 1, 2]
    for index, samples in heard:
        for sample, alone in zip(samples, undisturbed[index], strict=True):
            assert torch.equal(sample.tokens, alone.tokens)
            assert torch.allclose(sample.logprobs, alone.logprobs, atol=TOLERANCE)


def test_weights_that_are_no_numbers_are_told_of(served, weights_restored, prompts):
    """JSON has no NaN, and the server writes another number."""
    from mmrl_core.errors import NotFiniteError

    with torch.no_grad():
        served.model.base.get_parameter("model.language_model.layers.1.mlp.down_proj.weight")[3, 5] = torch.nan
    with pytest.raises(NotFiniteError, match="sampled token 1 are NaN"):
        roll_out(served, prompts, Sampling(12))


def test_a_failing_listener_leaves_no_answers_behind(served, prompts, helpers):
    def fail(index, samples):
        raise LookupError

    with pytest.raises(LookupError):
        helpers.generate(served, prompts("qwen2_5_vl"), 4, Sampling(12, seed=9), fail)
    rows = helpers.rows_of(roll_out(served, prompts, Sampling(12, seed=1)))
    assert [row.prompt_id for row in rows[::4]] == [prompt.id for prompt in prompts("qwen2_5_vl")]
    assert helpers.largest_difference(served, rows) < TOLERANCE


def test_a_refused_prompt_is_an_error_and_not_the_end(served, prompts, helpers):
    process = popen(served)
    with pytest.raises(PolicyError, match=r"vLLM refuses a prompt: .*top_k must be"):
        roll_out(served, prompts, Sampling(12, top_k=-7))
    assert popen(served) is process
    assert helpers.largest_difference(served, helpers.rows_of(roll_out(served, prompts, Sampling(12)))) < TOLERANCE


@pytest.mark.parametrize(("mode", "kind"), [("server", "copies"), ("server", "shares"), ("colocated", "shares")])
def test_two_processes_sample_what_one_samples(mode, kind, served, tiny_model, helpers, tmp_path):
    """Through one server, which the first one starts and sends the weights, or each through its own vLLM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # what launchers set
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("ranks.py")),
                str(tiny_model("qwen2_5_vl")),
                tmp_path / "found",
                mode,
                kind,
            ],
            env={**os.environ, "RANK": rank, "LOCAL_RANK": rank, **common},
        )
        for rank in "01"
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    found = [json.loads((tmp_path / f"found.{rank}.json").read_text()) for rank in (0, 1)]
    assert [of_rank["has_server"] for of_rank in found] == [mode == "server", False]
    alone = {"before": [helpers.told_of_rank(served, rank) for rank in (0, 1)]}
    weights = {name: weight.clone() for name, weight in served.model.state_dict().items()}
    helpers.change_weights(served)
    served.publish_weights()
    alone["after"] = [helpers.told_of_rank(served, rank) for rank in (0, 1)]
    served.model.load_state_dict(weights)
    served.publish_weights()
    for when in ("before", "after"):
        for rank in (0, 1):
            assert found[rank][when][0] == alone[when][rank][0]
            assert max(found[rank][when][1], alone[when][rank][1]) < TOLERANCE
    assert found[0]["before"] != found[0]["after"]


def test_a_server_killed_in_a_conversation_is_started_again(served, helpers, monkeypatch, capfd):
    """The second turn of a server that knows nothing of the first is the same, with media in both."""
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
    observe, first = served.observe, popen(served).pid

    def observe_and_kill(*arguments):
        if popen(served).pid == first:
            kill(served)
        return observe(*arguments)

    monkeypatch.setattr(served, "observe", observe_and_kill)
    rows = conversations()
    assert popen(served).pid != first
    assert capfd.readouterr().out == "the vLLM server is started again: it was ended by signal 9\n"
    assert [row.action.tolist() for row in rows] == [row.action.tolist() for row in undisturbed]
    assert helpers.largest_difference(served, rows) < TOLERANCE


def test_a_server_that_ends_twice_ends_the_run_with_its_log(served, prompts, monkeypatch, capfd):
    """The first while it samples, with part of the answers heard."""
    monkeypatch.setattr(served.model, "stop_ids", set())
    call = Server.call

    def killed(server, path, body=None, **options):
        if path == "/inference/v1/generate":
            threading.Timer(0.5, kill, [served]).start()
        return call(server, path, body, **options)

    monkeypatch.setattr(Server, "call", killed)
    ended = re.compile(r"ended twice in one rollout; it was ended by signal 9\n.+", re.S)
    with pytest.raises(PolicyError, match=ended):
        served.rollout(prompts("qwen2_5_vl")[:1], 4, Sampling(400))
    assert capfd.readouterr().out.count("started again") == 1


class Other(http.server.BaseHTTPRequestHandler):
    """Some program that is not vLLM, or with `answers` a vLLM that is not in its development mode."""

    answers = ()

    def do_GET(self):
        self.send_error(200 if self.path in self.answers else 404)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


class Production(Other):
    answers = ("/health", "/version")


@pytest.mark.parametrize(
    ("program", "advice"),
    [(None, "the connection to it broke"), (Other, "HTTP 404"), (Production, "with VLLM_SERVER_DEV_MODE=1")],
)
def test_what_cannot_be_used_as_a_server_is_an_error(make_policy, prompts, program, advice):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        if program is not None:
            other = stack.enter_context(http.server.HTTPServer(("127.0.0.1", 0), program))
            address = f"127.0.0.1:{other.server_port}"
            threading.Thread(target=other.serve_forever).start()
            stack.callback(other.shutdown)
        policy = make_policy("qwen2", VLLMEngine(mode="server", address=address))
        with pytest.raises(PolicyError, match=f"no vLLM server can be used at {address}: .*{advice}"):
            policy.rollout(prompts("qwen2"), 2, Sampling(4))


def test_a_parameter_without_weights_is_noted():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)

        def load_weights(self, weights):
            return {name for name, _ in weights}

    model = Model()
    EmptyLoader(None).load_weights(model, None)
    assert all((parameter == 0).all() for parameter in model.parameters())
    model.load_weights([("first.weight", torch.zeros(2, 2))])
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    assert worker.mmrl_missing() == {"missing": ["first.bias", "second.weight"]}


@pytest.fixture(scope="module")
def addresses(tiny_model):
    """Of two servers that were started as docs/vllm.md says, with what a CPU needs besides."""
    documented = (
        "VLLM_SERVER_DEV_MODE=1 VLLM_MEDIA_CONNECTOR=mmrl VLLM_USE_V2_MODEL_RUNNER=0",
        "--enable-scale-out --generation-config vllm",
        "--worker-extension-cls mmrl_core.language_model.engines.vllm_plugin.WorkerExtension",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        "--enable-lora --max-lora-rank",
    )
    text = Path(__file__).parents[2].joinpath("docs/vllm.md").read_text()
    assert all(words in text for words in documented)
    environment = dict(setting.split("=") for words in documented for setting in words.split() if "=" in setting)
    options = [*documented[1].split(), *documented[2].split(), *documented[4].split(), "8"]
    options += ["--weight-transfer-config", '{"backend": "mmrl_gloo"}']
    on_cpu = "--dtype float32 --enforce-eager --no-enable-chunked-prefill --kv-cache-memory-bytes 50000000"
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(tiny_model("qwen2")), "--max-model-len", "612"]
    command += [*options, *on_cpu.split(), "--host", "127.0.0.1", "--port"]
    on_cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    found, servers = [], []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        found.append(f"127.0.0.1:{port}")
        servers.append(subprocess.Popen([*command, port], env={**os.environ, **on_cpu, **environment}))
    try:
        for address, process in zip(found, servers, strict=True):
            wait_for(address, process)
        yield found
    finally:
        for process in servers:
            process.terminate()
        for process in servers:
            process.wait()


def wait_for(address, process):
    server = Server(address)
    while process.poll() is None:
        with contextlib.suppress(ServerLostError):
            return server.call("/health", method="GET")
        time.sleep(0.2)
    raise AssertionError("the server has ended")


def test_servers_that_run_already_serve_one_run_after_the_other(addresses, make_policy, prompts, helpers, monkeypatch):
    """Requests are spread over them, and all get the weights."""
    asked, call = [], Server.call

    def noted(server, path, body=None, **options):
        asked.append((server.address, path))
        return call(server, path, body, **options)

    monkeypatch.setattr(Server, "call", noted)
    for seed in (0, 1):
        policy = make_policy("qwen2", VLLMEngine(mode="server", address=addresses), max_prompt_tokens=600)
        helpers.change_weights(policy, seed=seed)
        for _ in range(2):
            policy.publish_weights()
            rows = helpers.rows_of(policy.rollout(prompts("qwen2"), 2, Sampling(12)))
            assert helpers.largest_difference(policy, rows) < TOLERANCE
            helpers.change_weights(policy)
        policy.close()
    for address in addresses:
        assert (address, "/inference/v1/generate") in asked


def test_an_adapter_is_sent_alone(addresses, make_policy, prompts, helpers, monkeypatch):
    sent, call = [], Server.call

    def noted(server, path, body=None, **options):
        sent.append(path)
        return call(server, path, body, **options)

    engine = VLLMEngine(mode="server", address=addresses[0], sync="adapter")
    policy = make_policy("qwen2", engine, max_prompt_tokens=600, lora={"rank": 4})
    before = helpers.rows_of(policy.rollout(prompts("qwen2"), 2, Sampling(12)))
    assert helpers.largest_difference(policy, before) < TOLERANCE
    monkeypatch.setattr(Server, "call", noted)
    for seed in (0, 1):
        helpers.change_weights(policy, scale=0.05, seed=seed)
        policy.publish_weights()
        rows = helpers.rows_of(policy.rollout(prompts("qwen2"), 2, Sampling(12)))
        assert helpers.largest_difference(policy, rows) < TOLERANCE
    assert helpers.largest_difference(policy, before) > 0.05
    assert sent.count("/v1/load_lora_adapter") == 2 and "/update_weights" not in sent
    policy.close()
    with pytest.raises(PolicyError, match=r"set model\.lora"):
        make_policy("qwen2", VLLMEngine(mode="server", sync="adapter")).rollout(prompts("qwen2"), 2, Sampling(4))
