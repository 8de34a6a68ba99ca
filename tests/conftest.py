"""One thread for every test: small tensors gain nothing from more, and results stay the same.

Without a GPU Triton's kernels run in its interpreter, which has to be said before it is imported.
"""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
