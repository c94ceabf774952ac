"""What runs on the far side of the sandbox's wall.

These files are a program of their own, started as `python THIS_FOLDER` with an
empty environment: they use the standard library alone, import one another by
their bare names, and nothing of the framework is in the process that runs a
model's code. `supervisor.py` is the process that watches, `child.py` the one
that is watched; `wire.py` is what both sides of the wall speak.
"""
