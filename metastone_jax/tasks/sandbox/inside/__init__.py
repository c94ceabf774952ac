"""What runs on the far side of the sandbox's wall.

These files are a program of their own, started with an empty environment as a
package called `inside`: they use the standard library alone and import one
another relatively, so that nothing of the framework is in the process that runs
a model's code. `supervisor.py` is the process that watches, `child.py` the one
that is watched; `wire.py` is what both sides of the wall speak.
"""
