"""`RushExecutor`: puts client, agent and server together.

`executor.py` is the public class, `mapping.py` its `map`.
"""
