"""Published methods of reasoning with reinforcement learning, one small file each, and presets in `configs/algorithm/`.

They change losses, advantages or what is trained on, know nothing of text, and so work with every task.
"""

from mmrl_core import Registry

PACKAGE = "mmrl_text_reasoning.methods"


def register(registry: Registry) -> None:
    """The entries of all methods, by import string."""
    add = registry.add
    scores = {"unit": "score", "score": "mean"}
    add("loss", "drpo", f"{PACKAGE}.drpo:drpo", "DRPO: short right answers against wrong ones", **scores)
    add("loss", "trpa", f"{PACKAGE}.trpa:trpa", "TRPA: pairs of levels", frozen=("reference",), **scores)
    idle = {"idle_at_zero": True}
    add("loss", "degrpo", f"{PACKAGE}.degrpo:degrpo", "DeGRPO: the control token of Thinkless learns apart", **idle)
    add("loss", "rec", f"{PACKAGE}.rec:rec", "REINFORCE off-policy, with the masks and weights of the REC family")
    add("loss", "sapo", f"{PACKAGE}.menu:sapo", "SAPO: the ratio fades out softly", **idle)
    add("loss", "gmpo", f"{PACKAGE}.menu:gmpo", "GMPO: geometric mean of a row's ratios", unit="row", **idle)
    add("loss", "luspo", f"{PACKAGE}.menu:luspo", "LUSPO: GSPO times the length of the row", **idle)
    add("loss", "dppo", f"{PACKAGE}.menu:dppo", "DPPO: tokens that moved too far in probability are left out", **idle)
    add("loss", "kl_cov", f"{PACKAGE}.covariance:kl_cov", "KL-Cov: a penalty on the tokens that lower entropy")

    baseline = {"claims": ("advantage.base",)}
    add(
        "advantage",
        "shifted_baseline",
        f"{PACKAGE}.rec:shifted_baseline",
        "reward - (mean or log-mean-exp of the group + shift): OPMD, AsymRE",
        **baseline,
    )
    add("advantage", "red_drop", f"{PACKAGE}.rec:red_drop", "RED-Drop: surplus bad answers are left out", **baseline)
    add(
        "advantage",
        "optimal_baseline",
        f"{PACKAGE}.menu:optimal_baseline",
        "OPO: reward - mean of the group weighted by length",
        **baseline,
    )
    add("advantage", "pass_at_k", f"{PACKAGE}.menu:pass_at_k", "pass@k training, the analytical form", **baseline)
    add("advantage", "greedy_baseline", f"{PACKAGE}.remax:greedy_baseline", "ReMax: reward - greedy reward", **baseline)
    add(
        "advantage",
        "scaled_by_valid_groups",
        f"{PACKAGE}.menu:scaled_by_valid_groups",
        "GPG: times all rows / rows in groups that vary",
    )

    add("strategy", "with_greedy", f"{PACKAGE}.remax:with_greedy", "the last rollout of a group is greedy: ReMax")

    chosen = {"claims": ("batch.tokens",)}
    add("behaviour", "d3s", f"{PACKAGE}.d3s:D3S", "D3S: trains on what varies most", needs=("entropy",), **chosen)
    add(
        "behaviour",
        "clip_cov",
        f"{PACKAGE}.covariance:ClipCov",
        "Clip-Cov: entropy is kept",
        needs=("logprobs",),
        **chosen,
    )
    add("behaviour", "kl_cov", f"{PACKAGE}.covariance:KLCov", "marks tokens for the loss kl_cov", needs=("logprobs",))
    add(
        "behaviour",
        "unlikeliness",
        f"{PACKAGE}.unlikeliness:Unlikeliness",
        "right answers count more the less likely they were",
    )
    add("behaviour", "scaf_grpo", f"{PACKAGE}.scaf_grpo:ScafGRPO", "Scaf-GRPO: hints for prompts that nothing solves")
