"""``python -m sae_lens_sparsemax`` is ``sparsemax-sae``."""

import sys

from sae_lens_sparsemax.cli.main import main

sys.exit(main())
