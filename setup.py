"""Builds fastpose._C by handing the work to CMakeLists.txt. Imports neither torch nor the package."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

GIB_PER_JOB = 2.0  # what one nvcc process takes


def jobs() -> int:
    """As many compilers at once as cores and free memory allow; MAX_JOBS overrides."""
    if "MAX_JOBS" in os.environ:
        return int(os.environ["MAX_JOBS"])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(free / GIB_PER_JOB)))


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        configure = [
            *("cmake", "-S", str(Path(__file__).parent.resolve()), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DFASTPOSE_VERSION={self.distribution.get_version()}",
            f"-DFASTPOSE_CUDA_ARCHS={os.environ.get('FASTPOSE_CUDA_ARCHS', '')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        # This environment's cmake and ninja before the system's, which may be too old for the nvcc at hand.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        for command in (configure, ["cmake", "--build", str(build), "-j", str(jobs())]):
            subprocess.check_call(command, env={**os.environ, "PATH": path})


setup(ext_modules=[Extension("fastpose._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
