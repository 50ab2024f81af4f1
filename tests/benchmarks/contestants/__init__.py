"""One module for each contestant; each runs as a process of its own (see `worker.py`)."""
