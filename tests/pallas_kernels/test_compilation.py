"""Kernels become machine code on a machine without the hardware: alone, and inside training steps."""

import collections
import json
import re
from pathlib import Path

import pytest
from support.processes import compiling

from mom_jax.benchmarks.kernel_passes import OPERATORS, SIZES
from pallas_kernels.configs import HOPPER
from tools.kernels import gpu

PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"
SIZE, DTYPE = 256, "bfloat16"  # the published ones; docs/kernels.md has all
DEVICES = ("sm_90",)
# Kernels of bfloat16 rows that do not fit registers, by a few words.
SPILLING = {
    ("delta_rule", "gradients_kernel", "sm_80"),
    ("grouped_matmul", "row_gradient_kernel", "sm_80"),
    ("rank_one_decay", "gradients_kernel", "gfx942"),
}
# What a training step launches, by module: the delta rule, convolutions, products, mixing.
STEP = {
    "delta_rule_kernels": {"prepare_kernel", "forward_kernel", "borders_kernel", "reverse_kernel"},
    "delta_rule_gradients": {"gradients_kernel"},
    "grouped_matmul_kernels": {"product_kernel", "row_gradient_kernel", "weight_gradient_kernel"},
    "short_conv_kernels": {"forward_kernel", "backward_kernel"},
    "mixing_kernels": {"forward_kernel", "backward_kernel"},
}

GPU = """
import dataclasses, json
from pallas_kernels.gpu.assembler import find_ptxas
from tools.install_compilers import FOLDER
from tools.kernels import gpu
from mom_jax.benchmarks.kernel_passes import OPERATORS, Case, training
assert find_ptxas() == FOLDER / "nvidia/cuda_nvcc/bin/ptxas", find_ptxas()
for operator in OPERATORS["gpu"]:
    for device in {devices}:
        function, arguments = training(Case("gpu", operator, {size}, "{dtype}"), device=device)
        for launch in gpu.launches(function, *arguments):
            made = dataclasses.asdict(gpu.compiled(launch, device))
            print(json.dumps(dict(made, operator=operator, device=device, kernel=launch.name, most=gpu.SHARED[device])))
"""

TPU = f"""
from mom_jax.benchmarks.kernel_passes import OPERATORS, Case, training
from mom_jax.planning.targets import compiled, mesh
from tools.kernels.equations import calls
for operator in OPERATORS["tpu"]:
    size = {SIZE} if operator == "delta_rule" else {SIZE // 2}
    function, arguments = training(Case("tpu", operator, size, "{DTYPE}"))
    text = compiled(mesh("v5e:2x2"), function, *arguments).as_text()
    print(operator, len(list(calls("pallas_call", function, *arguments))), text.count("tpu_custom_call"))
"""

MOSAIC = f"""
import json, os, re, subprocess, sys, triton
from pathlib import Path
folder = Path(sys.argv[1])
os.environ["MOSAIC_GPU_DUMP_TO"] = str(folder)
from mom_jax.benchmarks.kernel_passes import Case, training
from mom_jax.planning.targets import compiled, mesh
from pallas_kernels.gpu import assembler, delta_rule, delta_rule_hopper
delta_rule.delta_rule = delta_rule_hopper.delta_rule
function, arguments = training(Case("gpu", "delta_rule", {SIZE}, "{DTYPE}"))
compiled(mesh("h100:1"), function, *arguments)
disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
for file in folder.glob("*.ptx"):
    said, ptx = file.with_suffix(".ptxas").read_text(encoding="utf-8"), file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"\\.version \\S+", f".version {{assembler.ptx_version() / 10}}", ptx), encoding="utf-8")
    subprocess.run([assembler.find_ptxas(), "--gpu-name=sm_90a", file, "-o", f"{{file}}.cubin"], check=True)
    code = subprocess.run([disassembler, "-c", f"{{file}}.cubin"], capture_output=True, text=True, check=True).stdout
    print(json.dumps([said, ptx.count("wgmma.mma_async"), len(re.findall("HGMMA[.]64x64", code))]))
"""

CUDA_STEP = f"""
import dataclasses, json
from mom_jax.planning.step import sized, traced_step
from mom_jax.planning.targets import abstract_mesh
from mom_jax.training.config import get_train_preset
from mom_jax.training.program import Program
from tools.kernels.equations import equations
mesh = abstract_mesh("NVIDIA H100", "gpu", data=1, fsdp=1, sequence=1, tensor=1)
config = get_train_preset("mom-tiny")
config = dataclasses.replace(config, model=dataclasses.replace(config.model, compute_dtype="{DTYPE}"))
step = traced_step(Program(sized(config, 2, 128), mesh))
kernels = [x.params["fn"].fn for x in equations("triton_kernel_call", step.jaxpr.jaxpr)]
made = step.lower(lowering_platforms=("cuda",)).as_text().count("custom_call @triton_kernel_call")
print(json.dumps([made, [(kernel.__module__.rpartition(".")[2], kernel.__name__) for kernel in kernels]]))
"""

TPU_STEP = """
from mom_jax.cli.main import main
options = "--topology v5e:2x2 --mesh.fsdp 4 --global-batch 4 --seq-len 128 --compile 1 --json"
assert main(["plan", "mom-tiny", *options.split()]) == 0
"""


def recorded_spills():
    """Spilled bytes by operator, kernel, size, dtype and device, as docs/kernels.md tells them."""
    spilled = collections.defaultdict(int)  # a kernel may stand there twice, with other constants
    for (operator, size, dtype), rows in gpu.recorded(PAGE.read_text(encoding="utf-8")).items():
        for kernel, cells in rows:
            for device, cell in cells.items():
                name, found = (operator, kernel, size, dtype, device), re.search(r"(\d+) B spilled", cell)
                spilled[name] = max(spilled[name], int(found[1]) if found else 0)
    return spilled


def test_what_spills():
    """In bfloat16 nothing on Hopper and later, elsewhere a few words that docs/kernels.md names; in float32 less than
    600 B of a thread at heads of up to 128 on Hopper and later."""
    spilled = {name: bytes_ for name, bytes_ in recorded_spills().items() if bytes_}
    half = {name: bytes_ for name, bytes_ in spilled.items() if name[3] == "bfloat16"}
    assert {(operator, kernel, device) for operator, kernel, _, _, device in half} <= SPILLING
    assert all(bytes_ <= 36 for bytes_ in half.values())
    assert all(x < 600 for (*_, size, _, device), x in spilled.items() if size <= 128 and device in HOPPER)


@pytest.mark.compilers
@pytest.mark.exhaustive
def test_gpu_kernels_fit_and_a_step_launches_them():
    """The assembler of ``jax[cuda12]`` takes every kernel as it is launched, of every operator both ways; none spills
    more registers than docs/kernels.md says, or takes more shared memory than there is. A step launches those of its
    operators together, and none is lost when it is lowered. One process, which makes each kernel once."""
    program = GPU.format(devices=DEVICES, size=SIZE, dtype=DTYPE) + CUDA_STEP
    *found, (made, launched) = map(json.loads, compiling(program).splitlines())
    assert made >= len(launched) and {module: {n for m, n in launched if m == module} for module in STEP} == STEP
    operators = collections.Counter(made["operator"] for made in found)
    assert operators.keys() == OPERATORS["gpu"].keys() and min(operators.values()) >= 2 and len(found) >= 20
    allowed = recorded_spills()
    for made in found:
        name = made["operator"], made["kernel"], SIZE, DTYPE, made["device"]
        assert made["spills"] <= allowed[name] and made["shared"] <= made["most"], made


@pytest.mark.compilers
@pytest.mark.programs
@pytest.mark.parametrize("size", SIZES)
def test_nothing_spills_on_hopper_and_later(size):
    """Any kernel of bfloat16 rows, at every size of a head."""
    found = map(json.loads, compiling(GPU.format(devices=HOPPER, size=size, dtype=DTYPE)).splitlines())
    assert [made for made in found if made["spills"] or made["shared"] > made["most"]] == []


@pytest.mark.compilers
@pytest.mark.programs
def test_mosaic_gpu_kernels_fit(tmp_path):
    """Those for Hopper: next to nothing spilled, products that do not wait for each other, and none of them dropped."""
    lines = compiling(f"import sys\nsys.argv[1:] = [{str(tmp_path)!r}]\n{MOSAIC}").splitlines()
    kernels = [json.loads(line) for line in lines if line.startswith("[")]
    assert len(kernels) == 3
    for said, written, made in kernels:
        spills = re.search(r"(\d+) bytes spill stores", said)
        assert spills is not None and int(spills[1]) <= 16 and "serialized" not in said, said
        assert made >= written >= 36


@pytest.mark.compilers
@pytest.mark.exhaustive
def test_tpu_kernels_compile():
    """libtpu compiles the forward, state and backward kernels of every recurrence, and both of the convolution; none is
    lost on the way to the machine. Half the published size will do, but for the default rule's."""
    lines = [line.split() for line in compiling(TPU).splitlines()]
    kernels = {operator: {int(traced), int(made)} for operator, traced, made in lines}
    assert kernels == {operator: {2 if operator == "short_conv" else 3} for operator in OPERATORS["tpu"]}


@pytest.mark.compilers
@pytest.mark.exhaustive
def test_training_step_for_tpu():
    """A plan compiles the step for four TPUs that share the parameters: kernels inside the layers, and what is sent."""
    said = json.loads(compiling(TPU_STEP))
    assert (said["compiled"], said["devices"], said["mesh"]["fsdp"], said["fits"]) == (True, 4, 4, True)
    assert said["custom_kernels"] >= 3 and said["collectives"]["all-gather"]["fsdp"]["bytes"] > 0
    assert said["hbm_bytes_per_device"] == sum(said["hbm_bytes_by_kind"].values())
    assert said["flops_per_step"] > 0 and 0 < said["mfu_estimate"] < 1
