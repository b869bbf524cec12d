"""Published methods of reasoning with reinforcement learning, one small file each, and presets in `configs/algorithm/`.

They change losses, advantages or what is trained on, know nothing of text, and so work with every task.
"""
