"""What the rewriting knows about PyTorch programs: tracing, and facts about FX graphs.

Nothing here knows an operator of fastres; ``fastres.rewrite`` puts the two together.
"""
