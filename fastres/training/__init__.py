"""What a training script needs around its loop, and the script that ``fastres train`` runs.

Nothing here knows fastres's operators: it is data, checkpoints, records and processes in plain
PyTorch. ``script.py`` is ``examples/train.py``.
"""
