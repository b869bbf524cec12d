"""R1-AQA (arXiv:2503.11197): questions about sounds with options, learnt by verifiable reward."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Rewards, data sources, the metric of MMAU, and the demo's sounds, model and view."""
    package = "mmrl_audio_aqa"
    add = registry.add
    add("reward", "accuracy", f"{package}.rewards:accuracy", "the right option, by text or letter", maximum=1.0)
    add("reward", "format", f"{package}.rewards:format", "one answer block, after the thinking if any", maximum=1.0)
    add("reward", "mmau_match", f"{package}.rewards:mmau_match", "MMAU's rule on the words of an answer", maximum=1.0)

    add("source", "avqa", f"{package}.data:avqa", "AVQA questions on the sound of a video: hub name or local files")
    add("source", "mmau", f"{package}.data:mmau", "MMAU questions: hub name or local files")
    add("source", "melodies", f"{package}.demo_data:melodies", "wav files of made-up melodies and questions on them")

    add("metric", "mmau", f"{package}.metrics:mmau", "MMAU's accuracy by task, difficulty and sub-category")

    add("model", "melody_listener", f"{package}.demo_model:build_melody_listener", "small Qwen2-Audio, tower trained")
    add("view", "timeline", f"{package}.views:timeline", "when the notes of a melody sound")
