"""What tests of several processes share: a plugin that makes runs comparable, rewards, and their ends."""

import time

PROBE = '''
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from mmrl_core import hookimpl
from mmrl_core.conversation import Reply
from mmrl_core.run import derive_seed

plan = dict(part.split("=") for part in os.environ.get("PROBE_PLAN", "").split())

@hookimpl
def mmrl_register(registry):
    registry.add("environment", "echo", "probe_ranks:Echo", "repeats how much was said")

class Echo:
    def __init__(self, tools, media_root):
        pass

    def prepare(self, prompt):
        return prompt

    def begin(self, prompt):
        return {"turns": 0}

    def reply(self, episodes, texts, ask):
        replies = []
        for episode, text in zip(episodes, texts):
            episode["turns"] += 1
            said = f"you said {len(text)} letters"
            replies.append(Reply([{"role": "user", "content": [{"type": "text", "text": said}]}], len(text) % 7 / 7))
        return replies

    def outcome(self, episode):
        return dict(episode)

    def split(self, prompt, answer):
        return [answer]

    def close(self):
        pass

@hookimpl
def mmrl_rollout(run, prompts):
    """What the core does, but prompt by prompt, with seeds that do not depend on the process that has the prompt."""
    groups, given = [], {} if run.environment is None else {"environment": run.environment}
    for prompt in prompts:
        sampling = replace(run.sampling(), seed=derive_seed("probe", run.state.step, prompt.id))
        strategy = run.stage.rollout.strategy
        groups += run.call("strategy", strategy, run.policy, [prompt], run.stage.group_size, sampling, **given)
    return groups

@hookimpl(tryfirst=True)
def mmrl_shape_rewards(run):
    """In the middle of a step that the plan names, in the process that it names, something happens."""
    rank = os.environ.get("RANK")
    if int(plan.get("step", -1)) != run.state.step + 1 or plan["rank"] not in ("all", "launcher", rank):
        return
    if plan["what"] == "raise":
        raise ValueError("the probe has had enough")
    number = getattr(signal, plan["what"])
    if "met" in plan:
        Path(plan["met"]).write_text(str(time.time()))
    if plan["rank"] != "launcher":
        os.kill(os.getpid(), number)
    elif rank == "0":
        os.kill(os.getppid(), number)
    limit = time.monotonic() + 60
    while run.keeper.stopping.pending != number and time.monotonic() < limit:
        time.sleep(0.01)

@hookimpl
def mmrl_evaluated(run):
    if plan.get("rank") == "evaluates" and run.state.step == int(plan["step"]):
        os.kill(os.getpid(), getattr(signal, plan["what"]))
'''


def make_site(folder, source):
    """A folder to put on the path that has the plugin `probe_ranks` installed."""
    info = folder / "site" / "mmrl_probe_ranks-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "probe_ranks.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrl-probe-ranks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl]\nprobe_ranks = probe_ranks\n")


def joined(processes, limit_s=120):
    """Exit codes, and the seconds until the last one had ended."""
    started = time.monotonic()
    for process in processes:
        process.join(limit_s)
    return [process.exitcode for process in processes], time.monotonic() - started


REWARDS = """
import os
import time

def spread(completions, samples):
    return [sum(map(ord, c)) % 97 / 96 for c in completions]

def raises(completions, samples):
    return [1 / (s["number"] % 2) for s in samples]

def hangs(completions, samples):
    time.sleep(2.0 if samples[0]["number"] % 4 == 3 else 0)
    return [1.0] * len(completions)

def raises_on_one(completions, samples):
    return [1 / (os.environ.get("RANK") != "1") for _ in samples]

def noted(policy, prompts, group_size, sampling, on_group=None):
    from pathlib import Path

    with open(Path(__file__).with_name("sampled.txt"), "a") as file:
        file.write(f"{os.environ.get('RANK')} {sampling.temperature:g} {[prompt.id for prompt in prompts]}\\n")
    return policy.rollout(prompts, group_size, sampling, on_group=on_group)

def hangs_on_one(completions, samples):
    time.sleep(2.0 if os.environ.get("RANK") == "1" else 0)
    return [1.0] * len(completions)
"""
