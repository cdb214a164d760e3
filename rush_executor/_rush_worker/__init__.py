"""Workers of networks that keep their tasks: `RushWorker`, its loops, and how such a worker starts.

`worker.py` is the public class, `loops.py` what a worker does that was given a function and no loop of its own,
`seeds.py` what a seed does, `seat.py` where a worker sits: its connections, and who supervises it. `main.py` is what a
forked worker runs.
"""
