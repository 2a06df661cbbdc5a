"""What the rewriting knows about PyTorch programs: tracing, and facts about FX graphs.

Nothing here knows an operator of fastres; ``fastres.fuse`` puts the two together.
"""
