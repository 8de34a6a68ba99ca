"""How rounding grows with the number of steps: the error in the action against float64.

Every row of a batch is refined n times by the walk, by the dense kernel and by the reference in
float32, with select="last" so that the whole path counts. The median and the largest error over
rows are printed beside the share of rows that are ill-conditioned: shaken by one part in a million
they move by more than a hundred times as much, so no float32 computation can follow them.

    python -m benchmarks.drift
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dtag_fast.refinement import RefineOptions, Refiner, reference
from dtag_fast.refinement.execution import Algorithm
from dtag_fast.refinement.parity import KINKED, SHAKE, random_batch, random_critic

STEPS = (1, 10, 50, 200, 1000)
STEP_SIZES = (0.03, 0.3)
ROWS = 64
ALGORITHMS: tuple[Algorithm, ...] = ("walk", "dense")


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    critic = random_critic(observation_dim=17, action_dim=6, hidden=(256, 256))
    exact_critic = copy.deepcopy(critic).double()
    observations, actions = random_batch(critic, ROWS)
    print(f"{'eta':>5} {'n':>5} {'shaky':>6}  " + "  ".join(f"{name:>19}" for name in NAMES))
    for step_size in STEP_SIZES:
        for steps in STEPS:
            options = {"steps": steps, "step_size": step_size, "select": "last"}
            checked = Refiner(critic, **options).options  # type: ignore[arg-type]

            def exact(start: Tensor, checked: RefineOptions = checked) -> Tensor:
                points = start.double().unsqueeze(1)
                return reference.run(exact_critic, observations.double(), points, checked)[0]

            truth = exact(actions)
            signs = torch.randint(0, 2, actions.shape) * 2 - 1
            moved = (exact(actions.double() + SHAKE * signs) - truth).abs().amax(dim=1)
            steady = moved <= KINKED * SHAKE
            results = [
                Refiner(critic, algorithm=algorithm, **options)(observations, actions)  # type: ignore[arg-type]
                for algorithm in ALGORITHMS
            ]
            results.append(reference.refine(critic, observations, actions, **options))  # type: ignore[arg-type]
            cells = []
            for result in results:
                error = (result.double() - truth).abs().amax(dim=1)[steady]
                cells.append(f"{float(error.median()):9.1e} {float(error.max()):9.1e}")
            shaky = 1 - float(steady.double().mean())
            print(f"{step_size:5} {steps:5} {shaky:6.0%}  " + "  ".join(cells))


NAMES = (*ALGORITHMS, "reference, float32")

if __name__ == "__main__":
    main()
