"""The templates in deploy/: as far as they can be checked without a cluster."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ancestral.apps.cli import main
from ancestral.runs import config

yaml = pytest.importorskip("yaml")
torchrun = pytest.importorskip("torch.distributed.run")
DEPLOY = Path(__file__).parent.parent / "deploy"
SLURM = (DEPLOY / "slurm.sbatch").read_text()
JOB = yaml.safe_load((DEPLOY / "kubeflow-trainjob.yaml").read_text())
SKY = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())

# The fields of a TrainJob that are used here, by the path to them, from the definition in kubeflow/trainer,
# manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml (v1alpha1), read in November 2026.
TRAIN_JOB = {
    "spec": {"activeDeadlineSeconds", "initializer", "managedBy", "runtimePatches", "runtimeRef", "suspend", "trainer"},
    "trainer": {"args", "command", "env", "image", "numNodes", "numProcPerNode", "resourcesPerNode"},
    "patch": {"manager", "time", "trainingRuntimeSpec"},
    "pod": {"terminationGracePeriodSeconds", "volumes", "containers"},
}
# Of a SkyPilot task, from sky/utils/schemas.py.
SKY_TASK = {"name", "num_nodes", "workdir", "resources", "file_mounts", "setup", "run"}


def shell_command(script):
    """The words of the torchrun command in a script, each variable standing for 2."""
    joined = script.replace("\\\n", " ")
    line = next(line for line in joined.splitlines() if "torchrun" in line and "-m ancestral" in line)
    words = shlex.split(re.sub(r"\$\{?\w+(:-\w*)?\}?", "2", line).rstrip("& "))
    return words[words.index("torchrun") + 1 :]


COMMANDS = {
    "slurm": shell_command(SLURM),
    "kubeflow": JOB["spec"]["trainer"]["args"],
    "skypilot": shell_command(SKY["run"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_torchrun_and_ancestral_understand_the_command(name):
    given = torchrun.get_args_parser().parse_args(COMMANDS[name])
    assert given.module
    assert given.training_script == "ancestral"
    assert given.max_restarts == 3
    verb, *arguments = given.training_script_args
    assert verb == "train"
    context = main.main.commands["train"].make_context("train", list(arguments))
    assert context.params["run"]
    chosen = dict(one.split("=", 1) for one in context.params["assignments"])
    assert chosen.keys() == {"train.parallel", "train.precision", "train.workers", "data.cache"}
    settings = config.resolve(context.params["data"], context.params["preset"], chosen)
    assert (settings.train.parallel, settings.train.precision) == ("ddp", "bfloat16")
    assert settings.train.workers > 0
    assert settings.data.cache.endswith("cache")


def test_what_is_installed_is_this_repository():
    assert SKY["workdir"] == "."
    assert SKY["setup"].split() == ["pip", "install", "."]
    image = (DEPLOY.parent / "Dockerfile.cuda").read_text()
    assert "COPY src /package/src" in image
    assert "Dockerfile.cuda" in (DEPLOY / "kubeflow-trainjob.yaml").read_text()
    for template in (SLURM, SKY["setup"]):
        assert not re.search(r"pip install[^\n]*\bancestral\b", template)  # the index has none of ours


def test_every_template_mends_the_store():
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in SLURM
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in SKY["run"]
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in JOB["spec"]["trainer"]["env"]


def test_the_train_job_has_the_fields_of_its_definition():
    assert (JOB["apiVersion"], JOB["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert JOB["spec"].keys() <= TRAIN_JOB["spec"]
    assert JOB["spec"]["trainer"].keys() <= TRAIN_JOB["trainer"]
    (patch,) = JOB["spec"]["runtimePatches"]
    assert patch.keys() <= TRAIN_JOB["patch"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod.keys() <= TRAIN_JOB["pod"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert all(isinstance(word, str) for word in JOB["spec"]["trainer"]["args"])


def test_the_task_has_the_fields_of_skypilot():
    assert SKY.keys() <= SKY_TASK
    assert SKY["file_mounts"]["/shared"].keys() <= {"name", "source", "store", "mode"}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("script", [SLURM, SKY["run"], SKY["setup"]], ids=["slurm", "skypilot run", "skypilot setup"])
def test_bash_reads_the_scripts(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_time_limit_signal_reaches_the_trap():
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in re.findall("^#SBATCH.*", SLURM, re.M)
    )
    assert options["signal"].startswith("B:USR1@")
    assert "requeue" in options
    assert re.search(r"trap '.*kill -TERM.*' USR1 TERM", SLURM)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(("told", "code"), [(True, 0), (False, 3)], ids=["its time is nearly up", "it fails"])
def test_the_job_waits_for_the_save_and_queues_itself_again(tmp_path, told, code):
    """With an srun and an scontrol that write down what they are asked: no SLURM is here."""
    log = tmp_path / "log"
    step = "trap 'echo saved >> \"$LOG\"; exit 75' TERM\nsleep 20 &\nwait" if told else "exit 3"
    for name, body in {
        "srun": f'echo "$*" >> "$LOG"\n{step}',
        "scontrol": 'if [[ $1 == show ]]; then echo node-1; else echo "scontrol $*" >> "$LOG"; fi',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node-[1-2]"}
    env = {**os.environ, **slurm, "LOG": str(log), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", DEPLOY / "slurm.sbatch", "data", "run"], env=env) as job:
        try:
            while told and not log.exists():
                time.sleep(0.02)
            time.sleep(0.2 * told)  # for its trap
            if told:
                job.send_signal(signal.SIGUSR1)
            assert job.wait(15) == code
        finally:
            job.kill()
    asked, *after = log.read_text().splitlines()
    assert asked.startswith("torchrun --nnodes=2 --nproc-per-node=4")
    assert "--rdzv-endpoint=node-1:29500 --rdzv-id=7.0 -m ancestral train data --out run" in asked
    assert after == (["saved", "scontrol requeue 7"] if told else [])
