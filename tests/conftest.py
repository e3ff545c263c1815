"""Settings of every test, made before anything loads torch; this folder is also where shared helpers are found."""

import os

# Tests run beside each other, and small networks are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
