"""The run directory: metrics, sampled completions, the report."""

from mmrl_core.runs.alarms import alarms_of
from mmrl_core.runs.answers import answer_lines
from mmrl_core.runs.intervals import held_out_intervals
from mmrl_core.runs.log import (
    MetricsLog,
    check_trackers,
    evaluation_table,
    flat_config,
    peak_memory_mib,
    read_metrics,
    weights_mib,
)
from mmrl_core.runs.recorder import Recorder
from mmrl_core.runs.report import ReportServer, number_of, write_report
from mmrl_core.runs.rightness import PASS_TOLERANCE, Rightness
from mmrl_core.runs.rollouts import RolloutLog, prompt_text
from mmrl_core.runs.step_metrics import mean_outcomes, rollout_metrics, trajectory_advantages
from mmrl_core.runs.summary import RunSummary, find_runs, summarize

__all__ = [
    "PASS_TOLERANCE",
    "MetricsLog",
    "Recorder",
    "ReportServer",
    "Rightness",
    "RolloutLog",
    "RunSummary",
    "alarms_of",
    "answer_lines",
    "check_trackers",
    "evaluation_table",
    "find_runs",
    "flat_config",
    "held_out_intervals",
    "mean_outcomes",
    "number_of",
    "peak_memory_mib",
    "prompt_text",
    "read_metrics",
    "rollout_metrics",
    "summarize",
    "trajectory_advantages",
    "weights_mib",
    "write_report",
]
