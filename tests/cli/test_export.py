"""`mmrl export` of an adapter on quantised weights: merged into the plain ones, for llama.cpp, and sent to the hub."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmrl_core.cli import main
from mmrl_core.testing import build_tiny

TASK = {
    "name": "sums",
    "description": "Add two numbers.",
    "model": {"path": "models/tiny", "quantization": "nf4", "lora": {"rank": 2}},
    "data": {"train": {"path": "rows.jsonl"}, "held_out": {"path": "rows.jsonl"}},
    "prompt": {"text": "{problem}", "answer": "{answer}"},
    "rewards": ["rewards.py:length"],
    "rollout": {"max_tokens": 3},
    "optimizer": {"lr": 0.1},
    "stages": [{"kind": "sft", "steps": 2, "prompts_per_step": 2}],
}

REWARD = """
def length(completions, samples):
    return [len(text) / 10 for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run of LoRA on quantised weights, and its model."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_tiny("qwen2", folder / "models" / "tiny")
        rows = [{"problem": f"{number} + 1", "answer": str(number + 1)} for number in range(4)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("rewards.py").write_text(REWARD)
        Path("task.yaml").write_text(yaml.safe_dump(TASK))
        assert main(["train", "task.yaml", "--output", "runs/nf4"]) == 0
    return folder


def exported(capsys, *arguments: str) -> str:
    """What the command prints."""
    assert main(["export", "runs/nf4", "exported", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    """The one line that says why nothing was written."""
    assert main(["export", "runs/nf4", "exported", *arguments]) == 2 and not Path("exported").exists()
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("mmrl: "))
    return line


def test_an_adapter_on_quantised_weights_is_merged_into_the_plain_ones(here, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    exported(capsys, "--merge")
    plain = AutoModelForCausalLM.from_pretrained("models/tiny", dtype=torch.float32)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    expected = PeftModel.from_pretrained(plain, "runs/nf4/checkpoints/step-2/model").merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained("exported", dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())
    assert any(not torch.allclose(found[name], weight, atol=1e-3) for name, weight in before.items())
    assert "quantization_config" not in json.loads(Path("exported/config.json").read_text())


def test_the_card_says_what_was_trained_on_what_and_how_well(here, capsys):
    exported(capsys)
    card = Path("exported/README.md").read_text()
    assert "library_name: peft" in card and "base_model:" not in card  # the model was in a folder
    for said in (
        "A LoRA adapter for `tiny`, with mmrl, on the task `sums`; this is step-2.",
        "A LoRA adapter was trained over weights quantised as nf4.",
        "Over 4 held-out prompts.",
        "rows.jsonl",
        "## License",
        "transformers ",
    ):
        assert said in card
    config = here / "runs/nf4/config.yaml"
    kept = config.read_text()
    try:
        config.write_text(kept.replace("models/tiny", "owner/name"))
        shutil.rmtree("exported")
        exported(capsys)
    finally:
        config.write_text(kept)
    card = Path("exported/README.md").read_text()
    assert "base_model: owner/name\nbase_model_relation: adapter\n" in card


def test_a_folder_for_llama_cpp_has_all_that_its_converter_needs(here, capsys):
    """Each weight has a name in GGUF. The converter itself is no package; docs/models.md says what it took."""
    import gguf

    (here / "models/tiny/tokenizer.model").write_bytes(b"of sentencepiece")
    printed = exported(capsys, "--merge", "--gguf-ready", "--precision", "bfloat16")
    assert "convert_hf_to_gguf.py exported --outfile exported.gguf" in printed
    assert Path("exported/tokenizer.model").read_bytes() == b"of sentencepiece"
    assert Path("exported/tokenizer.json").is_file() and not Path("exported/adapter_config.json").exists()
    settings = json.loads(Path("exported/config.json").read_text())
    assert settings["architectures"] == ["Qwen2ForCausalLM"] and settings["dtype"] == "bfloat16"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, settings["num_hidden_layers"])
    weights = load_file("exported/model.safetensors")
    assert all(names.get_name(name, (".weight", ".bias")) for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_what_llama_cpp_would_not_take_is_refused(here, capsys, monkeypatch):
    assert "--gguf-ready is for whole models, and this is a LoRA adapter. Add --merge" in refused(
        capsys, "--gguf-ready"
    )
    monkeypatch.setattr("mmrl_core.cli.gguf_ready.NEEDS_SENTENCEPIECE", {"Qwen2ForCausalLM"})
    (here / "models/tiny/tokenizer.model").unlink(missing_ok=True)
    assert "needs tokenizer.model, which the starting" in refused(capsys, "--merge", "--gguf-ready")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload needs. `server.status` is what a new model is answered with."""

    def do_GET(self):
        known = self.path == "/api/whoami-v2"
        self.answer({"name": "me", "type": "user", "orgs": []} if known else {}, 200 if known else 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, self.headers["authorization"], body))
        model = f"http://127.0.0.1:{self.server.server_port}/me/sums"
        if self.path == "/api/repos/create":
            self.answer({"url": model} if self.server.status == 200 else {}, self.server.status)
        elif self.path.endswith("/preupload/main"):
            modes = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        else:
            self.answer({"commitUrl": f"{model}/commit/abc", "commitOid": "abc"})

    def answer(self, content, status=200):
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if status == 404:  # by which the hub tells a model that is not there from an address that is none
            self.send_header("x-error-code", "RepoNotFound")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, with the user logged in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    yield server
    server.shutdown()
    server.server_close()


def test_the_folder_is_sent_to_the_hub_in_one_private_commit(here, capsys, hub):
    printed = exported(capsys, "--push", "me/sums")
    assert f"sent to http://127.0.0.1:{hub.server_port}/me/sums\n" in printed and "hf_of_the_test" not in printed
    assert {token for _, token, _ in hub.asked} == {"Bearer hf_of_the_test"}
    (created,) = (json.loads(body) for path, _, body in hub.asked if path == "/api/repos/create")
    assert created["name"] == "sums" and created["organization"] == "me" and created["visibility"] == "private"
    (commit,) = (body for path, _, body in hub.asked if "/api/models/me/sums/commit/" in path)
    head, *files = (json.loads(line)["value"] for line in commit.splitlines())
    assert head["summary"] == "step-2 of sums"
    sent = {file["path"]: base64.b64decode(file["content"]) for file in files}
    assert sent == {file.name: file.read_bytes() for file in Path("exported").iterdir()} and "README.md" in sent


def test_what_cannot_be_sent_is_said_before_anything_is_written(here, capsys, hub, monkeypatch, tmp_path):
    assert "--push a/b/c: " in refused(capsys, "--push", "a/b/c")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        assert "nobody is logged in on the hub. Run `hf auth login`" in refused(capsys, "--push", "me/sums")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in refused(capsys, "--push", "me/sums")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert "--push me/sums: " in refused(capsys, "--push", "me/sums")


def test_a_folder_that_the_hub_refuses_stays_here(here, capsys, hub):
    hub.status = 403
    assert main(["export", "runs/nf4", "exported", "--push", "me/sums"]) == 2
    error = capsys.readouterr().err
    assert "mmrl: --push me/sums: " in error and "403" in error
    assert os.listdir("exported")
