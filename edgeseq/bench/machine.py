"""The machine and the versions that a figure depends on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("edgeseq", "numpy", "onnxruntime")


def processor() -> str:
    """The name of the processor: from /proc/cpuinfo on Linux, where Python itself knows the family only."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """The machine, and the versions of Python and of those of the packages that are installed.

    Example:
        >>> sorted(environment(("numpy", "no-such-package"))["versions"])
        ['numpy', 'python']
    """
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": versions,
    }


def resident_bytes() -> int:
    """Bytes of this process in memory; where the system does not tell, the most that it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
