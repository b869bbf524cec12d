"""One of several training processes that sample through vLLM: `python ranks.py MODEL OUTPUT MODE KIND`.

RANK is set. MODE is that of the engine, KIND says what of the weights each process has: "copies" or "shares".
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import Helpers

from mmrl_core.config.schema import ShardingConfig
from mmrl_core.language_model import LanguageModelPolicy, VLLMEngine


def main(model, output, mode, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    policy = LanguageModelPolicy(model, engine=VLLMEngine(mode=mode, memory_gib=0.05), max_prompt_tokens=600)
    if kind == "shares":
        policy.shard(ShardingConfig())
    policy.check_start(12)
    before = Helpers.told_of_rank(policy, rank)
    Helpers.change_weights(policy)
    policy.publish_weights()
    server = policy.engine._host._process if mode == "server" else None
    found = {"before": before, "after": Helpers.told_of_rank(policy, rank), "has_server": server is not None}
    dist.barrier()
    policy.close()
    Path(f"{output}.{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(*sys.argv[1:])
