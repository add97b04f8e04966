"""Which GPUs are here, and whether torch can use them: asked in processes of their own, for torch is slow to load."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from orchestrator.doctor.findings import Finding, fine, unfit

DRIVER_S, TORCH_S = 20.0, 300.0  # a GPU that has fallen off its bus makes its driver wait for ever
TORCH = """
import json, torch
import torch.distributed as dist
gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
nccl = ".".join(map(str, torch.cuda.nccl.version())) if gpus else None
gloo = dist.is_available() and dist.is_gloo_available()
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus, "nccl": nccl, "gloo": gloo}))
"""


def device_findings(gpus: int) -> Iterator[Finding]:
    """Asks the driver and torch about this machine's GPUs, `gpus` of which may be used."""
    if gpus:
        yield _driver()
    if importlib.util.find_spec("torch") is None:
        return  # which is told among the packages
    try:
        said = _ask_torch()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield unfit("torch", f"cannot be used: {_words(error)}", "install it again, for this machine's driver")
        return
    build = f"for CUDA {said['cuda']}" if said["cuda"] else "for CPUs"
    if said["gpus"] < gpus:
        message = f"{said['torch']} ({build}) sees {said['gpus']} of {gpus} GPUs"
        yield unfit(
            "torch", message, "install the build of torch that fits the driver: https://pytorch.org/get-started"
        )
    elif not said["gloo"]:
        yield unfit("torch", f"{said['torch']} has no gloo, by which ranks find each other", "install another build")
    elif gpus:
        yield fine("torch", f"{said['torch']} {build}, {said['gpus']} GPUs, NCCL {said['nccl']}")
    else:
        yield fine("torch", f"{said['torch']} {build}; there is no GPU here, ranks meet over gloo")


def _driver() -> Finding:
    program = shutil.which("nvidia-smi")
    advice = "install the driver, or ask whoever administers this machine"
    if program is None:
        return unfit("GPUs", "nvidia-smi is not in PATH, though there are devices of GPUs", advice)
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DRIVER_S)
    except (OSError, subprocess.SubprocessError) as error:
        return unfit("GPUs", f"nvidia-smi does not answer: {_words(error)}", advice)
    kinds = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    name, _, driver = (kinds or [", unknown"])[0].partition(", ")
    return fine("GPUs", f"{len(kinds)} x {name}, driver {driver}")


def _ask_torch() -> dict[str, Any]:
    command = [sys.executable, "-c", TORCH]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TORCH_S)
    said: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return said


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return str(error.stderr or error.stdout).strip().rpartition("\n")[2] or f"exit code {error.returncode}"
    return f"no answer for {error.timeout:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
