"""`strict_reader`, which several tests may want, is importable by its name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
