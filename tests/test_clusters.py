"""The commands of docs/clusters.md are commands that the programs take."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from transformer.commands.fit import default_network
from transformer.commands.keys import parser_of
from transformer.training.checks import check

PAGE = Path(__file__).parent.parent / "docs/clusters.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
SLURM = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}


def command(block: str) -> list[str]:
    """The words of the one command in a block that trains."""
    text = re.sub(
        r"\$(SLURM_\w+)", lambda name: SLURM.get(name[1], "7"), block.replace("\\\n", " ")
    )
    (line,) = (line for line in text.splitlines() if " fit " in line)
    return shlex.split(line)


@pytest.mark.parametrize("block", BLOCKS, ids=["machine", "torchrun", "slurm"])
def test_fit_takes_the_options(block: str) -> None:
    words = command(block)
    args = words[words.index("fit") + 1 :]
    config = parser_of(default_network(args)).parse_args(args)
    check(config)
    assert config.existing == "resume" and config.trainer.strategy == "ddp"
    assert int(config.trainer.devices) == 8
    assert config.trainer.num_nodes == (1 if block is BLOCKS[0] else 2)


def test_torchrun_takes_its_options() -> None:
    options = get_args_parser().parse_args(command(BLOCKS[1])[1:])
    assert (options.nnodes, options.nproc_per_node, options.node_rank) == ("2", "8", 0)
    assert options.module and options.training_script == "transformer"
    assert options.training_script_args[0] == "fit"


def test_the_sbatch_file_is_bash_and_asks_for_a_task_for_each_gpu(tmp_path: Path) -> None:
    file = tmp_path / "train.sbatch"
    file.write_text(BLOCKS[2])
    subprocess.run(["bash", "-n", str(file)], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", BLOCKS[2], re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == SLURM["SLURM_NTASKS_PER_NODE"]
    assert asked["nodes"] == SLURM["SLURM_NNODES"] and asked["signal"].startswith("TERM@")
