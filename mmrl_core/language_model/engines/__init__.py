"""Rollout engines: `hf` samples in process, `vllm` through vLLM."""
