"""`RushExecutor`: puts client, agent and server together.

`executor.py` is the public class, `mapping.py` its `map`, `crew.py` keeps the agent and the private server,
`agent_process.py` is what the agent's process runs. This file imports none of them: the agent's process does not need
the client, and the client does not need the agent.
"""
