"""Training on two processes: the same losses and scores as on one with the same batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = """
import json, sys
import torch
from fastpose.recipes import get_recipe
from fastpose.training import figures_data, rank, train

torch.set_num_threads(1)
out, processes = sys.argv[1], int(sys.argv[2])
# Nothing in it depends on who else is in a batch, and nothing is dropped at random.
recipe = get_recipe(
    "deeppose-small", model_options={"stages": 2, "width": 0.05, "fc_dims": [16], "input_size": 64, "dropout": 0.0},
    figure_size=(64, 64), batch_size=4, steps=6, epoch_steps=3, precision="fp32", held_out=8,
)
data = figures_data(recipe, validation=7)
result = train(recipe, data, out, workers=0, progress=False, devices=processes)
if rank() == 0:
    print("result " + json.dumps({"history": result.history, "scores": result.scores}))
"""


def launch(folder: Path, processes: int) -> dict[str, Any]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(script), str(folder / f"on-{processes}"), str(processes)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("result "))
    return json.loads(line.removeprefix("result "))


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    one, two = (launch(tmp_path, processes) for processes in (1, 2))
    # In the second phase each process simulates predictions of its own.
    epochs = 2
    assert two["history"]["loss"][:epochs] == pytest.approx(one["history"]["loss"][:epochs], rel=1e-4)
    stage = "PCKh@0.5 stage 1"  # of 7 people, an odd number: nobody twice, nobody missing
    assert two["history"][stage][:epochs] == one["history"][stage][:epochs]
    assert len(two["history"]["loss"]) == len(one["history"]["loss"]) == 2 * epochs
    first, second = (load_file(tmp_path / f"on-{processes}" / "1-stage-1.safetensors") for processes in (1, 2))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tensor.isfinite().all():  # what the second phase fits is not known yet
            assert (tensor - second[name]).abs().max() < 1e-3 * max(1.0, tensor.abs().max()), name
