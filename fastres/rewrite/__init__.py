"""FX graph to FX graph: finds convolutions with what follows them, and puts operators there.

    units, fuse, live, chaining                inference: what becomes one operator
    training_fuse, rebuilt, handed,            training: likewise, with the layers and functions
    training_layers, training_functions        that its graphs call
    plan, training_plan                        one way of calling a module, rewritten and compiled

It knows operators and PyTorch's modules, never a network by name.
"""
