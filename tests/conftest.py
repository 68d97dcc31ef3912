import os

# Before the first import of a library with a thread pool: workers that share the cores would only wait for each other.
for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")
