"""Shared memory: files in /dev/shm through which processes of one machine hand large contents to each other.

Knows files, locks and mappings. Must not know pickles, tasks or the server. `directory.py` is what a client has and
what goes when it goes, `files.py` what any process writes, reads and recycles there.
"""
