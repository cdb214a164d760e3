"""The only room that speaks Redis: connections, scripts, notifications, the embedded server.

It moves bytes from client to worker and back and never looks into a payload. Client, worker and agent each have their
own view of the ledger (`client.py`, `worker.py`, `agent.py`): the transitions that they may ask for, and no others.
"""
