"""`dtag doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """What runs on this machine, and why the rest does not."""

    def run(self) -> int:
        """Print versions, the build and the backends; 1 if a required package is missing."""
        import importlib.metadata as metadata
        import platform

        import torch
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from dtag_fast import __version__, build_info
        from dtag_fast.acting import native
        from dtag_fast.refinement.backends import BACKENDS

        console = Console()
        console.print(f"dtag-fast {__version__}, Python {platform.python_version()}")
        console.print(f"{platform.system()} {platform.machine()}, torch {torch.__version__}")
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none seen by torch"
        console.print(f"GPU: {cuda}\n")

        build = Table(title="Compiled extension", show_header=False, title_justify="left")
        for key, value in build_info.describe().items():
            build.add_row(key, escape(str(value)))
        console.print(build)

        backends = Table("backend", "here", "takes", title="Refinement", title_justify="left")
        for name, entry in BACKENDS.items():
            reason = entry.load().unavailable_reason()
            here = "yes" if reason is None else f"no: {reason}"
            backends.add_row(name, escape(here), escape(entry.limits))
        console.print(backends)

        reason = native.unavailable_reason()
        acting = "native code" if reason is None else f"torch; native code cannot run: {reason}"
        console.print(f"Acting on the CPU: {escape(acting)}\n")

        packages = Table("package", "version", "for", title="Packages", title_justify="left")
        missing = False
        for package, extra in PACKAGES.items():
            try:
                version = metadata.version(package)
            except metadata.PackageNotFoundError:
                version = "missing"
                missing |= extra is None
            purpose = "required" if extra is None else f"pip install 'dtag-fast[{extra}]'"
            packages.add_row(package, version, escape(purpose))
        console.print(packages)
        return 1 if missing else 0


# Package to the extra that brings it; None where the package itself requires it.
PACKAGES: dict[str, str | None] = {
    "numpy": None,
    "gymnasium": None,
    "minari": None,
    "h5py": None,
    "safetensors": None,
    "tyro": None,
    "tqdm": None,
    "rich": None,
    "matplotlib": None,
    "mujoco": "envs",
    "gymnasium-robotics": "envs",
    "stable-baselines3": "collect",
    "huggingface-hub": "download",
    "moviepy": "video",
    "tensorboard": "tensorboard",
}
