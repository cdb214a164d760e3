"""`Rush`: makes a network that keeps its tasks, starts and stops its workers, and looks at it.

`rush.py` is the public class, `snapshots.py` and `snapshot_file.py` are what it writes into files, `plan.py` what
packages need that start workers on a user's behalf.
"""
