"""One thread for every test: small tensors gain nothing from more, and results stay the same.

Tests of benchmarks import them from the source tree, which comes last on the path: dtag_fast is the
installed one where there is one.

Without a GPU Triton's kernels run in its interpreter, which has to be said before it is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
