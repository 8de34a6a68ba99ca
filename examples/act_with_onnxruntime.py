"""Acts with an exported policy: ONNX Runtime, gymnasium and numpy, nothing of dtag-fast.

python -c "import dtag_fast as dt; dt.Policy.load('runs/policy').export('policy.onnx')"
python examples/act_with_onnxruntime.py policy.onnx Hopper-v5
"""

import sys

import gymnasium
import numpy as np
import onnxruntime

NUMBERS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def load(path: str) -> onnxruntime.InferenceSession:
    """A session on one thread: a policy for one environment is too small for more."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def play(session: onnxruntime.InferenceSession, env: gymnasium.Env, seed: int = 0) -> float:
    """The return of one episode."""
    # Observations, rewards and the state, which begins as zeros.
    inputs = {each.name: np.zeros(each.shape, NUMBERS[each.type]) for each in session.get_inputs()}
    names = [each.name.removeprefix("next_") for each in session.get_outputs()]
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        inputs["observations"] = np.asarray(observation, np.float32)[None]
        action, *state = session.run(None, inputs)
        inputs.update(zip(names[1:], state, strict=True))
        observation, reward, terminated, truncated, _ = env.step(action[0])
        inputs["rewards"] = np.array([reward], np.float32)
        total, over = total + reward, terminated or truncated
    return total


if __name__ == "__main__":
    print(play(load(sys.argv[1]), gymnasium.make(sys.argv[2])))
