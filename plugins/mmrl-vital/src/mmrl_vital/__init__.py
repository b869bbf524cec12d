"""VITAL (arXiv:2508.04416): reasoning about long videos with a visual toolbox, over several turns."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Tools, rewards, the difficulty-aware advantage, data sources, metrics, the demo's model and the timeline."""
    package = "mmrl_vital"
    add = registry.add
    tools = f"{package}.tools"
    add("tool", "get_video_clip_frame", f"{tools}:ClipFrames", "frames of a part of the video, sampled densely")
    add("tool", "get_video_clip_caption", f"{tools}:ClipCaption", "a part of the video in the policy's own words")
    add("tool", "ask_video_clip_question", f"{tools}:ClipAnswer", "the policy's answer from a part of the video alone")

    rewards = {
        "iou": "IoU in time of the answered and the true span",
        "iou_short": "the same, 0 up to an IoU of 0.2 and full from 0.8: short videos",
        "iou_chapters": "the same, full from an IoU of 0.5: chapters of long videos",
        "multiple_choice": "the right letter",
        "numerical": "equal numbers to one decimal, half for equal integers",
        "regression": "one minus the relative error",
        "ocr": "one minus the word error rate",
        "free_form": "mean of ROUGE-1, ROUGE-2 and ROUGE-L",
        "grounded_qa": "IoU in time and the answer, summed",
        "task": "whichever of these the row's column `task` names, in 0..1",
        "format": "think, tool_call and answer blocks in order, and useful tool calls",
    }
    maxima = {"grounded_qa": 2.0}
    for name, description in rewards.items():
        add("reward", name, f"{package}.rewards:{name}", description, maximum=maxima.get(name, 1.0))
    add("advantage", "difficulty", f"{package}.advantages:difficulty", "hard groups count more: DGRPO")

    add("source", "published", f"{package}.data:published", "MTVR-CoT-72k and MTVR-RL-110k: hub name or local files")
    add("source", "charades_sta", f"{package}.data:charades_sta", "Charades-STA annotations and videos")
    add("source", "activitynet", f"{package}.data:activitynet", "ActivityNet Captions as moment retrieval")
    add("source", "nextgqa", f"{package}.data:nextgqa", "NExT-GQA questions with spans")
    add("source", "rextime", f"{package}.data:rextime", "ReXTime questions with spans")
    add("source", "video_mme", f"{package}.data:video_mme", "Video-MME questions")
    add("source", "tool_videos", f"{package}.demo_data:tool_videos", "videos with short events and questions on them")

    add("metric", "temporal_grounding", f"{package}.metrics:temporal_grounding", "mIoU, R@0.3, R@0.5, R@0.7")
    add("metric", "accuracy", f"{package}.metrics:accuracy", "share of right choices, by a column")
    add("metric", "grounded_qa", f"{package}.metrics:grounded_qa", "accuracy, mIoU, R@m, Acc@GQA")

    add("model", "clip_reader", f"{package}.demo_model:build_clip_reader", "small Qwen2.5-VL, tower trained on frames")
    add("view", "timeline", f"{package}.views:timeline", "gold, asked-for and predicted spans of time")
