"""Print what pyproject.toml asks for: the build's requirements, or the package's and some extras'.

    python tools/requirements.py [EXTRA,...]

With both installed, `pip install --no-build-isolation --no-deps .` needs no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def main(extras: list[str]) -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    settings = tomllib.loads(text)
    project = settings["project"]
    if extras:
        requirements = project["dependencies"]
        for extra in extras:
            requirements += project["optional-dependencies"][extra]
    else:
        # A build without isolation finds its tools in the environment.
        requirements = [*settings["build-system"]["requires"], "cmake", "ninja"]
    print("\n".join(requirements))


if __name__ == "__main__":
    main([extra for argument in sys.argv[1:] for extra in argument.split(",")])
