"""Makes the helper modules in this folder importable by name: dataset_helpers, mutations, strict_reader."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
