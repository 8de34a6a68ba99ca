"""One thread for every test: small tensors gain nothing from more, and results stay the same.

Tests of benchmarks import them from the source tree, which comes last on the path: dtag_fast is the
installed one where there is one.

Without a GPU Triton's kernels run in its interpreter, which has to be said before it is imported.
That of Triton 3.6 makes numbers of arrays of one element in a way that numpy 2.5 ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError:
        pass
    else:
        if triton.__version__.startswith("3.6."):
            patch = interpreter._patch_lang_tensor

            def patch_tensor(tensor: Any, scope: Any) -> None:
                patch(tensor, scope)
                scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

            interpreter._patch_lang_tensor = patch_tensor
