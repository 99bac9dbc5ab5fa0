"""The daemon that hears, and the commands around it."""

import os

# Before numpy is imported: its matrix products here are too small for threads, which would wait by burning another core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
