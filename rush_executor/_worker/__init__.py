"""The task loop: what runs in each worker process.

Knows the ledger and the payload room; never sees client code, and never forks. `main.py` is what a freshly forked
process does, `signals.py` what signals do to it, `loop.py` claims and runs, `pace.py` decides how much to claim,
`courier.py` looks after what is waiting while a task takes its time.
"""
