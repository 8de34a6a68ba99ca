"""One thread for every test: small tensors gain nothing from more, and results stay the same."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
