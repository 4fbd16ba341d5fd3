"""Where no GPU is at hand, Triton's kernels run in its interpreter; it reads the variable when first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
