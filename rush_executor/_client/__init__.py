"""The client: from `submit` to a resolved Future, in one process.

| module | actor | does |
|---|---|---|
| `session.py` | the caller's thread | registers the Future, puts the task into the outbox or sends a lone one itself |
| `dispatcher.py` | thread `rush-dispatcher` | takes what the outbox holds, and what is to be retried, in batches |
| `retries.py` | (held by the dispatcher) | failed tasks that wait to be pushed again |
| `listener.py` | thread `rush-listener` | reads the inbox, resolves Futures; joins again; takes everything down |
| `callbacks.py` | thread `rush-callbacks` | runs done-callbacks, so that one may wait for another Future |
| `lifecycle.py` | interpreter exit, fork | finishes what was submitted; tells a forked child that it has no executor |

Knows the ledger and the payload room; never sees workers' code, and does not know who starts workers.
"""
