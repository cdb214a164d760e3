"""The agent: one per machine (or per executor), single-threaded, parent of its workers.

Starts once, so its imports are paid once, and forks workers from its warm state. It reaps them in milliseconds,
replaces them, enforces time limits, gives the signs of life that a busy worker cannot give, and ends them when its
owner dies. It never runs user code and never sees client code; what a worker does is handed to it as a function.
"""
