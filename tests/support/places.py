"""Where tests find the repository, its recipes, and the shared data where that is at hand."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
SHARED_DATA = Path(os.environ.get("SAE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
