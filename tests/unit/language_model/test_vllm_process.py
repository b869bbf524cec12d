"""The command line of a server that a run starts."""

import pytest

from mmrl_core.language_model.engines.vllm_process import flags


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"max_model_len": 612, "dtype": "float32"}, ["--max-model-len=612", "--dtype=float32"]),
        ({"enforce_eager": True, "enable_sleep_mode": False}, ["--enforce-eager", "--no-enable-sleep-mode"]),
        ({"seed": None}, []),
        ({"limit_mm_per_prompt": {"image": 1}}, ['--limit-mm-per-prompt={"image": 1}']),
    ],
)
def test_arguments_become_options_of_vllm_serve(arguments, line):
    assert flags(arguments) == line
