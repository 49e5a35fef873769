"""Builds the native module fastattn._C with CMake and Ninja; everything else is in pyproject.toml.

Environment variables read here:
    FASTATTN_SKIP_NATIVE=1  install the Python code only; the reference backend still works.
    CXX, CXXFLAGS, LDFLAGS  as CMake reads them: the compiler and additional flags.
    CMAKE_ARGS              more arguments for the CMake configure step.
    MAX_JOBS, CMAKE_BUILD_PARALLEL_LEVEL  how many compilers run at once; default: one per core.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SKIP_NATIVE = os.environ.get("FASTATTN_SKIP_NATIVE", "0") not in ("", "0")

NO_COMPILER = """
fastattn: the native module needs a C++17 compiler; found none ({tried}).
Install one (Debian or Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or set CXX to
yours, or set FASTATTN_SKIP_NATIVE=1 to install without the native module (reference backend only,
slow).
"""
BUILD_FAILED = """
fastattn: building the native module failed at this step: {step}.
The compiler's own messages are above (pip shows them with -v). To install without the native module
(reference backend only, slow), set FASTATTN_SKIP_NATIVE=1.
"""


def find_compiler() -> str:
    """The C++ compiler that CMake will be told to use; exits with advice if there is none."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for candidate in candidates:
        if shutil.which(shlex.split(candidate)[0]):
            return candidate
    sys.exit(NO_COMPILER.format(tried=", ".join(candidates)))


def find_tool(name: str) -> str:
    """Path of cmake or ninja: the build environment's wheel first, then whatever is on PATH."""
    wheel_script = Path(sys.executable).parent / name
    path = str(wheel_script) if wheel_script.exists() else shutil.which(name)
    if path is None:
        sys.exit(
            f"fastattn: the build needs {name}; found none. Install it with "
            f"`pip install {name}`, or drop --no-build-isolation so that pip brings it."
        )
    return path


def build_jobs() -> int:
    """Number of parallel compile jobs."""
    for variable in ("MAX_JOBS", "CMAKE_BUILD_PARALLEL_LEVEL"):
        value = os.environ.get(variable, "")
        if value:
            if not value.isdigit() or int(value) < 1:
                sys.exit(f"fastattn: {variable} must be a positive integer; got {value!r}.")
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(step: str, command: list[str]) -> None:
    """Runs one build step and turns its failure into a message that says what to do."""
    print("fastattn:", shlex.join(command), flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(BUILD_FAILED.format(step=step))


class CMakeBuild(build_ext):
    """Builds csrc/CMakeLists.txt and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compiler = find_compiler()
        cmake_args = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One folder per configuration, kept between builds: an edit recompiles only what it
        # touches, also under pip's build isolation, where cmake and pybind11 move every time.
        flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS")]
        identity = repr((str(ROOT), compiler, cmake_args, flags, target.name))
        folder = hashlib.sha256(identity.encode()).hexdigest()[:12]
        build_dir = ROOT / "build" / f"native-{folder}"
        configure = [
            find_tool("cmake"),
            *("-S", str(ROOT / "csrc"), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTATTN_VERSION={self.distribution.get_version()}",
            f"-DFASTATTN_MODULE_NAME={target.name}",
            *cmake_args,
        ]
        os.environ.setdefault("CXX", compiler)
        run("configure", configure)
        jobs = str(build_jobs())
        run("compile", [configure[0], "--build", str(build_dir), "--parallel", jobs])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build_dir / target.name, target)


if SKIP_NATIVE:
    print("fastattn: FASTATTN_SKIP_NATIVE is set; installing without the native module.")
    setup()
else:
    setup(ext_modules=[Extension("fastattn._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
