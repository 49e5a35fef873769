"""Builds the native module fastattn._C with CMake and Ninja; everything else is in pyproject.toml.

Environment variables read here:
    FASTATTN_SKIP_NATIVE=1  install the Python code only; the reference backend still works.
    FASTATTN_CUDA           0: no CUDA kernels; 1: none is an error; default: if there are nvcc and
                            a GPU, or FASTATTN_CUDA_ARCHITECTURES is set.
    CUDA_HOME, CUDA_PATH    the CUDA toolkit; default: nvcc on PATH, then nvidia's wheels.
    FASTATTN_CUDA_ARCHITECTURES  "80;90", "all"; default: those of the GPUs here, else all.
    FASTATTN_EMULATOR=1     also build fastattn._emulated: the CUDA kernels on a CPU, for tests.
    CXX, CXXFLAGS, LDFLAGS  as CMake reads them: the compiler and additional flags.
    CMAKE_ARGS              more arguments for the CMake configure step.
    MAX_JOBS, CMAKE_BUILD_PARALLEL_LEVEL  how many compilers run at once; default: one per core.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SKIP_NATIVE = os.environ.get("FASTATTN_SKIP_NATIVE", "0") not in ("", "0")
EMULATOR = os.environ.get("FASTATTN_EMULATOR", "0") not in ("", "0")

# Those that the CUDA kernels are written for. Code for one also runs on later ones of its major
# version: 80 on 87, 100 on 103.
CUDA_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

NO_COMPILER = """
fastattn: the native module needs g++ 11 or newer; found none ({tried}).
Install it (Debian or Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or set CXX to
yours, or set FASTATTN_SKIP_NATIVE=1 to install without the native module (reference backend only,
slow).
"""
BUILD_FAILED = """
fastattn: building the native module failed at this step: {step}.
The compiler's own messages are above (pip shows them with -v). To install without the native module
(reference backend only, slow), set FASTATTN_SKIP_NATIVE=1.
"""
NO_NVCC = """
fastattn: FASTATTN_CUDA=1 asks for the CUDA kernels; {reason}.
Without a CUDA toolkit, its compiler installs with pip: pip install -r requirements-cuda.txt
With one, set CUDA_HOME to its folder.
"""


class Cuda(NamedTuple):
    """How the CUDA kernels will be built, or why not."""

    nvcc: str = ""
    toolkit: str = ""  # the folder with its bin, include and lib
    version: str = ""
    architectures: tuple[int, ...] = ()
    skipped: str = ""

    def cmake_args(self) -> list[str]:
        return [
            f"-DFASTATTN_NVCC={self.nvcc}",
            f"-DFASTATTN_CUDA_TOOLKIT={self.toolkit}",
            f"-DFASTATTN_NVCC_VERSION={self.version}",
            f"-DFASTATTN_CUDA_ARCHITECTURES={';'.join(map(str, self.architectures))}",
            f"-DFASTATTN_CUDA_SKIPPED={self.skipped}",
        ]

    def __str__(self) -> str:
        if self.skipped:
            return f"without CUDA kernels: {self.skipped}"
        names = " ".join(f"sm_{number}" for number in self.architectures)
        return f"with CUDA kernels for {names}, by nvcc {self.version} ({self.nvcc})"


def find_cuda() -> Cuda:
    """The CUDA compiler and what it is to compile for; exits if it is asked for and not there."""
    wish = os.environ.get("FASTATTN_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"fastattn: FASTATTN_CUDA must be 0, 1 or unset; got {wish!r}.")
    if wish == "0":
        return Cuda(skipped="switched off by FASTATTN_CUDA=0 when it was built")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = find_nvcc(home)
    if nvcc is not None:
        version = re.search(r"release [\d.]+, V([\d.]+)", output(nvcc, "--version"))
        supported = set(re.findall(r"\d+", output(nvcc, "--list-gpu-code")))
        # It may be a link or a script, such as Debian's; nvcc itself knows where the rest is.
        top = re.search(r"#\$ TOP=(.+)", output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull))
        if version and supported and top:
            known = [number for number in CUDA_ARCHITECTURES if str(number) in supported]
            architectures = choose_architectures(known)
            # For all architectures the build takes minutes, which nobody asked for without a GPU.
            if wish == "1" or os.environ.get("FASTATTN_CUDA_ARCHITECTURES") or gpus_here():
                toolkit = str(Path(top[1].strip()).resolve())
                return Cuda(nvcc, toolkit, version[1], architectures)
            return Cuda(
                skipped="nvidia-smi saw no GPU when it was built (FASTATTN_CUDA=1 builds them "
                "all the same)"
            )
        reason = f"{nvcc} did not run when it was built"
    elif home:
        reason = f"there was no nvcc in CUDA_HOME, {home}, when it was built"
    else:
        reason = "no nvcc was found when it was built"
    if wish == "1":
        sys.exit(NO_NVCC.format(reason=reason))
    return Cuda(skipped=reason)


def find_nvcc(home: str | None) -> str | None:
    """Path of nvcc: in CUDA_HOME, on PATH, or in the wheels nvidia-cuda-nvcc and its kin."""
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    # Under pip's build isolation sys.path lacks the environment that pip runs in; sysconfig knows.
    site_packages = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    wheels = [found for path in site_packages for found in Path(path).glob("nvidia/cu*/bin")]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(map(str, wheels)))


def choose_architectures(known: list[int]) -> tuple[int, ...]:
    """Which of the architectures that kernels and nvcc know are compiled for."""
    wish = os.environ.get("FASTATTN_CUDA_ARCHITECTURES", "")
    if wish and wish != "all":
        chosen = re.split(r"[;, ]+", wish)
        if not set(chosen) <= set(map(str, known)):
            sys.exit(
                'fastattn: FASTATTN_CUDA_ARCHITECTURES must be "all", or a list such as "80;90" of '
                f"{' '.join(map(str, known))}; got {wish!r}."
            )
        return tuple(sorted({int(number) for number in chosen}))
    if not wish:
        # The best that runs on each: of its major version, and not later than it.
        served = [[n for n in known if n // 10 == gpu // 10 and n <= gpu] for gpu in gpus_here()]
        if any(served):
            return tuple(sorted({max(numbers) for numbers in served if numbers}))
    return tuple(known)


def gpus_here() -> set[int]:
    """The architectures of the GPUs of this machine, such as 90."""
    here = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return {int(major + minor) for major, minor in re.findall(r"(\d+)\.(\d)", here)}


def output(*command: str) -> str:
    """What a command prints; nothing if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr if result.returncode == 0 else ""


def find_compiler() -> str:
    """The C++ compiler that CMake will be told to use; exits with advice if there is none."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]
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
    """Builds csrc/CMakeLists.txt and puts the modules where setuptools expects them."""

    def build_extensions(self) -> None:
        import pybind11

        compiler = find_compiler()
        cuda = find_cuda()
        print(f"fastattn: building {cuda}", flush=True)
        cmake_args = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        targets = [Path(self.get_ext_fullpath(ext.name)).resolve() for ext in self.extensions]
        # One folder per configuration, kept between builds: an edit recompiles only what it
        # touches, also under pip's build isolation, where cmake and pybind11 move every time.
        flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS")]
        identity = repr((str(ROOT), compiler, cmake_args, flags, targets[0].name))
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
            f"-DFASTATTN_MODULE_SUFFIX={targets[0].name.removeprefix('_C')}",
            f"-DFASTATTN_EMULATOR={'ON' if EMULATOR else 'OFF'}",
            f"-DFASTATTN_JOBS={build_jobs()}",
            *cuda.cmake_args(),
            *cmake_args,
        ]
        os.environ.setdefault("CXX", compiler)
        run("configure", configure)
        jobs = str(build_jobs())
        run("compile", [configure[0], "--build", str(build_dir), "--parallel", jobs])
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            # In one step: a process that has the old module mapped keeps it.
            new = target.with_suffix(".new")
            shutil.copy2(build_dir / target.name, new)
            new.replace(target)
        print(f"fastattn: built {cuda}", flush=True)


def main() -> None:
    """Installs, with or without the native modules."""
    if SKIP_NATIVE:
        print("fastattn: FASTATTN_SKIP_NATIVE is set; installing without the native module.")
        setup()
        return
    names = ["fastattn._C", *(["fastattn._emulated"] if EMULATOR else [])]
    setup(
        ext_modules=[Extension(name, sources=[]) for name in names],
        cmdclass={"build_ext": CMakeBuild},
    )


if __name__ == "__main__":
    main()
