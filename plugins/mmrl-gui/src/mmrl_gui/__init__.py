"""GUI-R1 (arXiv:2504.10458) and UI-R1 (arXiv:2503.21620): one action on a screenshot, by verifiable reward."""

from mmrl_core import Registry, hookimpl


@hookimpl
def mmrl_register(registry: Registry) -> None:
    """Rewards, the length term of UI-R1-E, data sources, metrics, the demo's model, and what the report draws."""
    package = "mmrl_gui"
    add = registry.add
    rewards = {
        "gui_r1": "0.8 x accuracy + 0.2 x format of GUI-R1",
        "gui_r1_accuracy": "the action's name, its point and its text are right",
        "gui_r1_format": "one think block, then a list of well-formed actions",
        "ui_r1_action": "the action's name is right",
        "ui_r1_coord": "the action is right, and a click lies in the box",
        "ui_r1_coord_efficient": "the same, for answers of one action only",
        "ui_r1_format": "one think block, then an answer with an action",
        "ui_r1_format_nothink": "an answer with an action, and nothing else",
    }
    for name, description in rewards.items():
        add("reward", name, f"{package}.rewards:{name}", description, maximum=1.0)
    add("behaviour", "dast", f"{package}.shaping:Dast", "short right answers gain, long and short wrong ones lose")

    add("source", "gui_r1", f"{package}.data:gui_r1", "rows in the schema of GUI-R1: hub name or local files")
    add("source", "ui_r1", f"{package}.data:ui_r1", "rows in the schema of UI-R1: hub name or local files")
    add("source", "screenspot", f"{package}.data:screenspot", "ScreenSpot, ScreenSpot-v2 and ScreenSpot-Pro")
    add("source", "androidcontrol", f"{package}.data:androidcontrol", "AndroidControl's test file, as UI-R1 ships it")
    add("source", "widget_screens", f"{package}.demo_data:widget_screens", "screens of a small widget toolkit")

    add("metric", "grounding", f"{package}.metrics:grounding", "share of points in the box, by platform and type")
    add("metric", "steps", f"{package}.metrics:steps", "type accuracy, grounding accuracy, step success")

    add("model", "screen_reader", f"{package}.demo_model:build_screen_reader", "small Qwen2.5-VL, tower trained")
    add("view", "actions", f"{package}.views:actions", "the gold box, and where the answer points")
