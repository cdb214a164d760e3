"""What client and worker agree on: states, key schema, ids, records.

Pure data and pure functions: no I/O, no thread, no clock. Every other room may import this one; it imports nothing
but the standard library.
"""
