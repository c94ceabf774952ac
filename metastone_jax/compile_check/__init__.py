"""What a recipe's programs need on named machines, asked of the compilers.

No accelerator is there: the TPU and GPU compilers compile for a described
machine. `launch.compile` is the command.
"""
