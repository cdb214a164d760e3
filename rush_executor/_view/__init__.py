"""The view: what users look at. Reads only, never writes.

Nothing in this room changes the state of a task, a worker or a network. It is a stranger to client, agent and worker.

| module | does |
|---|---|
| `reader.py` | everything that one can ask a network; remembers what cannot change |
| `table.py` | `TaskTable`: the rows and columns of tasks that were read |
| `rows.py` | rows of tasks, and what has been worked out about their columns so far |
| `cells.py`, `layout.py` | a table as text and as HTML |
| `export.py` | a table in pandas, polars and Arrow |
| `same.py` | whether two values are the same, whatever they are |
| `conditions.py` | why a task has failed |
| `details.py` | one task in full, as text |
| `logs.py` | what workers have logged: read, printed, followed |
| `lookout.py` | a network at a glance, of either kind; its throughput |
| `checkup.py` | whether a server is fit for a network, and what to do where it is not |
"""
