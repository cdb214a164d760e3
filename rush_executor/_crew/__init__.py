"""The crew: the processes that work for somebody here, an agent with its workers and a private server.

`crew.py` starts and keeps them, for an executor or a manager, `agent_process.py` is what the agent's process runs: it
puts agent and task loop together, whose rooms do not know each other. `ctrl_c.py` sees to it that none is started of
which nobody knows. This file imports none of them: the agent's process does not need the client.
"""
