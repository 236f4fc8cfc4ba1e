"""The scripts of launch/, beside programs that answer as gcloud, kubectl, sky and srun do, and note the question."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPTS = ("gpu_box.sh", "tpu_vm.sh", "gke.sh", "sky.sh", "slurm.sbatch")
PROGRAMS = ("gcloud", "kubectl", "sky", "srun", "scontrol", "git", "sleep")
JOB = ["--config", "configs/imagenet8.py", "--workdir", "/work/my run", "--config.data.pool=gs://b/{00..99}.tar"]
LAUNCH = ("-m", "pujax.launch")
ENVIRONMENT = {  # what the scripts want to be told
    "TPU": "t", "ZONE": "z", "TYPE": "v5litepod-16", "IMAGE": "registry/pujax:tpu", "NODEPOOL": "v5e",
    "TOPOLOGY": "4x4", "HOSTS": "4", "GPU": "nvidia-l4", "SLURM_JOB_ID": "7", "PAUSE": "0",
}  # fmt: skip
# Notes its name and arguments, and answers with the next line, "status text", of the file named after it.
STUB = r"""#!/usr/bin/env bash
name="${0##*/}" key="${0##*/}"
[[ "$name" != gcloud ]] || key="$3-$4"
[[ -z "${CUDA_VISIBLE_DEVICES:-}" ]] || name+=" $CUDA_VISIBLE_DEVICES" key+="$CUDA_VISIBLE_DEVICES"
pid=''
[[ -z "${WAIT:-}" ]] || trap 'kill $pid 2>/dev/null; exit 75' TERM
printf -v call '%s\x1f' "$name" "$@"
printf '%s\x1e' "$call" >>"$NOTES/calls"
[[ "$key" != kubectl ]] || cat >"$NOTES/stdin"
[[ -z "${WAIT:-}" ]] || { /bin/sleep 20 & pid=$!; wait; }
answers="$NOTES/answers/$key" answer='0'
if [[ -s "$answers" ]]; then
  read -r answer <"$answers"
  sed -i 1d "$answers"
fi
[[ "$answer" != *' '* ]] || echo "${answer#* }"
exit "${answer%% *}"
"""


class Site:
    """A copy of launch/ in a repository of its own, beside programs that only take notes."""

    def __init__(self, root):
        self.root, self.notes = root, root / "notes"
        shutil.copytree(ROOT / "launch", root / "launch")
        (self.notes / "answers").mkdir(parents=True)
        for path in (*(root / "bin" / name for name in PROGRAMS), root / ".venv/bin/python"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STUB)
            path.chmod(0o755)
        (root / ".venv" / ".cuda").touch()

    def answers(self, **answers):
        for key, lines in answers.items():
            (self.notes / "answers" / key.replace("__", "-").replace("_", "-")).write_text("\n".join(lines) + "\n")

    def start(self, script, *options, environment=None, **how):
        told = ENVIRONMENT | (environment or {}) | {"NOTES": str(self.notes)}
        told |= {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / script), *options],
            cwd=self.root, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
        )  # fmt: skip

    def run(self, script, *options, **how):
        """Return (status, stdout, stderr)."""
        process = self.start(script, *options, **how)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def wait_for(self, count):
        """Wait until so many calls were made."""
        path, until = self.notes / "calls", time.monotonic() + 20
        while not path.exists() or path.read_text().count("\x1e") < count:
            assert time.monotonic() < until
            time.sleep(0.02)

    def calls(self):
        """What was called since the last look, as lists of words."""
        path = self.notes / "calls"
        calls = [call.split("\x1f")[:-1] for call in path.read_text().split("\x1e")[:-1]] if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for call in calls if call[0] != "sleep"]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def commands(printed):
    return [shlex.split(line) for line in printed.splitlines()]


def steps(calls):
    """gcloud's calls in short: "create", "ssh", ..., with the kind of resource where it is a request for one."""
    return [call[4] if call[3] == "tpu-vm" else f"request {call[4]}" for call in calls if call[0] == "gcloud"]


# --- what all have in common ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_head_of_the_script(site, script):
    status, out, err = site.run(script, "--help")
    assert (status, err, site.calls()) == (0, "", [])
    assert f"launch/{script}" in out and "--config" in out and "--dry_run" in out
    assert out.splitlines()[0].startswith("Run ") and "set -" not in out and "#" not in out


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("options", "said"), [((), "no --config"), (("--wrong=1", "a", "--config", "x"), "unknown option --wrong=1")]
)
def test_a_wrong_command_line_is_one_line_and_status_2(site, script, options, said):
    if script == "sky.sh" and options:
        said, options = "is no number", ("--workers=many", *JOB)  # it hands on what it does not know
    status, out, err = site.run(script, *options)
    assert (status, out, site.calls()) == (2, "", [])
    assert err.startswith(f"{script}: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "options", "unset", "said"),
    [
        ("gpu_box.sh", ["--workers=all", *JOB], "", "--workers=all is no number"),
        ("gpu_box.sh", ["--workers=2", *JOB, "--stages=score"], "", "leave --stages out"),
        ("tpu_vm.sh", JOB, "TPU", "TPU is not set"),
        ("tpu_vm.sh", JOB, "TYPE", "for example v5litepod-16"),
        ("gke.sh", JOB, "IMAGE", "launch/Containerfile"),
        ("gke.sh", JOB, "NODEPOOL", "NODEPOOL is not set"),
        ("gke.sh", ["--workers=3", *JOB], "GPU", "GPU is not set"),
        ("gke.sh", ["--workers=0", *JOB], "", "--workers=0 is no number"),
        ("gke.sh", JOB[:2], "", "--workdir /work/NAME"),
        ("sky.sh", JOB[:2], "", "--workdir s3://"),
        ("sky.sh", ["--workers=2", *JOB, "--stages", "score"], "", "leave --stages out"),
        ("slurm.sbatch", JOB, "SLURM_JOB_ID", "submit it: sbatch"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value).strip("-"),
)
def test_what_is_missing_or_contradicts_is_named(site, script, options, unset, said):
    status, out, err = site.run(script, *options, environment={unset: ""} if unset else {})
    assert (status, out, site.calls()) == (2, "", []) and said in err and err.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_the_commands_and_calls_nothing(site, script):
    (site.root / ".venv" / ".cuda").unlink()
    before = {path for path in site.root.rglob("*")}
    status, out, err = site.run(script, "--dry_run", *JOB, "--dry_run")
    assert (status, err, site.calls()) == (0, "", [])
    assert {path for path in site.root.rglob("*")} == before
    if script == "gke.sh":
        first, *_, last = out.splitlines()
        assert first == "kubectl apply -f - <<'EOF'" and last == "EOF"
    else:
        assert out.count("--dry_run") == 1  # the job's own, behind --config, is handed on
        assert any(program in {".venv/bin/python", *PROGRAMS} for program, *_ in commands(out))


# --- one machine -------------------------------------------------------------------------------------------------


def test_a_box_gets_an_environment_once_and_arguments_whole(site):
    (site.root / ".venv" / ".cuda").unlink()
    assert site.run("gpu_box.sh", *JOB, environment={"PYTHON": str(site.root / ".venv/bin/python")})[0] == 0
    made, installed, job = site.calls()
    assert made[1:] == ["-m", "venv", ".venv"] and installed[-1] == ".[cuda,gcs,s3]"
    assert job == ["python", *LAUNCH, *JOB]
    assert site.run("gpu_box.sh", *JOB)[0] == 0 and site.calls() == [job]


@pytest.mark.parametrize("statuses", [(0,), (75, 75, 0), (75, 1), (2,), (137,)])
def test_a_box_starts_a_job_again_after_75_and_after_nothing_else(site, statuses):
    site.answers(python=[*map(str, statuses), "0"])
    status, _, err = site.run("gpu_box.sh", *JOB)
    assert status == statuses[-1] and len(site.calls()) == len(statuses)
    assert err.count("starting the job again") == len(statuses) - 1


def test_workers_of_a_box_have_a_gpu_each_and_run_between_scorer_and_the_rest(site):
    site.answers(python0=["75", "0"], python1=["1"])  # what that one left, the last command does
    assert site.run("gpu_box.sh", "--workers=3", *JOB)[0] == 0
    first, *workers, last = site.calls()
    assert first == ["python", *LAUNCH, *JOB, "--stages=teacher,scorer"] and last == ["python", *LAUNCH, *JOB]
    assert sorted(call[0] for call in workers) == ["python 0", "python 0", "python 1", "python 2"]
    assert all(call[1:] == [*LAUNCH, *JOB, "--stages=score"] for call in workers)


def test_a_worker_with_wrong_input_ends_the_job(site):
    site.answers(python1=["2"])
    assert site.run("gpu_box.sh", "--workers=2", *JOB)[0] == 2 and len(site.calls()) == 3
    site.answers(python=["1"])
    assert site.run("gpu_box.sh", "--workers=2", *JOB)[0] == 1 and len(site.calls()) == 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_box_that_is_told_to_stop_tells_the_job_and_hands_on_75(site, workers):
    if workers == "2":  # teacher and scorer are done at once, the workers wait
        stub = (site.root / ".venv/bin/python").read_text()
        (site.root / ".venv/bin/python").write_text(stub.replace("${WAIT:-}", "${CUDA_VISIBLE_DEVICES:-}"))
    script = site.start("gpu_box.sh", f"--workers={workers}", *JOB, environment={"WAIT": "1"})
    site.wait_for(int(workers) + 1)
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=10)
    assert script.returncode == 75 and len(site.calls()) == int(workers) + 1


def test_a_box_that_is_told_to_stop_while_workers_start_tells_them(site):
    stub = (site.root / ".venv/bin/python").read_text()
    (site.root / ".venv/bin/python").write_text(stub.replace("${WAIT:-}", "${CUDA_VISIBLE_DEVICES:-}"))
    slow = site.root / "slow.sh"  # read by every bash: the script stands still before it takes note of its workers
    slow.write_text("""trap 'case "$BASH_COMMAND" in "children=("*pids*) /bin/sleep 1 ;; esac' DEBUG\n""")
    script = site.start("gpu_box.sh", "--workers=2", *JOB, environment={"BASH_ENV": str(slow)})
    site.wait_for(3)
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=10)
    assert script.returncode == 75 and len(site.calls()) == 3


# --- TPU VMs -----------------------------------------------------------------------------------------------------


def test_a_slice_is_made_and_its_workers_install_and_run(site):
    site.answers(tpu_vm_describe=["1", "0 CREATING", "0 READY"])
    status, _, err = site.run("tpu_vm.sh", "--spot", "--delete", *JOB, environment={"SETUP": "mount /work"})
    calls = site.calls()
    assert status == 0 and "t is CREATING" in err and calls[0][:3] == ["git", "archive", "--format=tar.gz"]
    looks = ["describe", "create", "describe", "describe"]
    assert steps(calls) == [*looks, "scp", "ssh", "ssh", "scp", "scp", "delete"]
    gcloud = [call[5:] for call in calls if call[0] == "gcloud"]
    assert gcloud[1] == ["t", "--zone=z", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert gcloud[4][2:] == ["--zone=z", "--worker=all"] and gcloud[4][1] == "t:pujax.tar.gz"
    assert all("--worker=all" in call for call in gcloud[5:7])
    assert gcloud[5][-1].startswith("--command=(mount /work) && mkdir -p pujax") and ".[tpu,gcs]" in gcloud[5][-1]
    before, words = gcloud[6][-1].removeprefix("--command=").split(" -m ")
    assert before == "cd pujax && PUJAX_DISTRIBUTED=1 .venv/bin/python" and shlex.split(words) == ["pujax.launch", *JOB]
    assert [call[0] for call in gcloud[7:9]] == ["t:/work/my run/report.html", "t:/work/my run/summary.json"]
    assert all(call[1:] == ["runs/t/", "--zone=z", "--worker=0"] for call in gcloud[7:9])


def test_a_queued_slice_is_waited_for_and_asked_for_anew_when_it_was_taken_away(site):
    site.answers(
        tpu_vm_describe=["1", "1", "0 CREATING", "0 READY", "0 PREEMPTED", "0 PREEMPTED", "0 READY"],
        queued_resources_describe=["1", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING"],
        tpu_vm_ssh=["0", "255"],  # the job's connection breaks
    )
    status, _, err = site.run("tpu_vm.sh", "--queued", "--spot", "--delete", *JOB)
    assert status == 0 and "WAITING_FOR_RESOURCES" in err and "starting the job again" in err
    calls = site.calls()
    both = ["describe", "request describe"]
    expected = [*both, "request create", *both, *both, "describe", "scp", "ssh", "ssh", "describe"]
    expected += ["describe", "request delete", "request create", "describe", "scp", "ssh", "ssh"]
    assert steps(calls) == [*expected, "scp", "scp", "request delete"]
    created = [call[5:] for call in calls if call[3:5] == ["queued-resources", "create"]]
    where = ["t", "--node-id=t", "--zone=z", "--accelerator-type=v5litepod-16"]
    assert created == [[*where, "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]] * 2
    deleted = [call[5:] for call in calls if call[3:5] == ["queued-resources", "delete"]]
    assert deleted == [["t", "--zone=z", "--force", "--quiet"]] * 2


@pytest.mark.parametrize(
    ("statuses", "jobs", "last"), [(["75", "0"], 2, 0), (["2"], 1, 2), (["1"], 1, 1), (["75", "255"], 2, 255)]
)
def test_a_job_on_a_sound_slice_is_started_again_after_75_alone(site, statuses, jobs, last):
    answers = [line for status in statuses for line in ("0", status)]  # the first is of the installation
    site.answers(tpu_vm_describe=["0 READY"] * 5, tpu_vm_ssh=answers)
    status, _, err = site.run("tpu_vm.sh", *JOB[:2], "--workdir=gs://b/run1")
    calls = site.calls()
    assert status == last and steps(calls).count("ssh") == 2 * jobs and "delete" not in steps(calls)
    copied = [call for call in calls if call[:3] == ["gcloud", "storage", "cp"]]
    assert copied == ([["gcloud", "storage", "cp", f"gs://b/run1/{file}", "runs/t/"]
                       for file in ("report.html", "summary.json")] if last == 0 else [])  # fmt: skip
    assert ("the same command continues it" in err) == (last != 0)


def test_a_request_that_failed_is_told(site):
    site.answers(tpu_vm_describe=["1"], queued_resources_describe=["0 FAILED"])
    status, _, err = site.run("tpu_vm.sh", "--queued", *JOB)
    assert status == 1 and "queued-resources describe t --zone=z says why" in err


# --- Kubernetes --------------------------------------------------------------------------------------------------

ODD = [*JOB, "--config.select.rule=a \"b\" \\ & $(c) 'd' # e: f, [g]"]
RULES = [
    {"action": "FailJob", "onExitCodes": {"containerName": "pujax", "operator": "In", "values": [2]}},
    {"action": "Ignore", "onExitCodes": {"containerName": "pujax", "operator": "In", "values": [75]}},
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


def applied(site):
    assert site.calls() == [["kubectl", "apply", "-f", "-"]]
    text = (site.notes / "stdin").read_text()
    assert not re.search("__[A-Z_]+__", re.sub("^#.*", "", text, flags=re.M))
    return yaml.safe_load(text)


def test_a_slice_of_gke_runs_the_job_on_all_its_hosts(site):
    assert site.run("gke.sh", *ODD)[0] == 0
    jobset = applied(site)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    rule = {"name": "wrongInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 3, "rules": [rule]}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (4, 4, "Indexed")
    assert job["podFailurePolicy"]["rules"] == RULES
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy wants it
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-nodepool": "v5e",
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    container = pod["containers"][0]
    assert (container["name"], container["image"], container["args"]) == ("pujax", "registry/pujax:tpu", ODD)
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "pujax"


def test_scoring_workers_of_gke_are_an_indexed_job_on_spot_machines(site):
    assert site.run("gke.sh", "--workers=32", *ODD, environment={"NAME": "mine", "CLAIM": "shared"})[0] == 0
    job = applied(site)
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("batch/v1", "Job", "mine-score")
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (32, 32)
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["podFailurePolicy"]["rules"] == RULES
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["args"] == [*ODD, "--stages=score"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"


def test_what_a_dry_run_prints_is_what_is_applied(site):
    out = site.run("gke.sh", "--dry_run", *ODD)[1]
    assert site.run("gke.sh", *ODD)[0] == 0
    assert yaml.safe_load("\n".join(out.splitlines()[1:-1])) == applied(site)


def test_kubectl_s_status_is_handed_on(site):
    site.answers(kubectl=["1"])
    assert site.run("gke.sh", *JOB)[0] == 1


# --- SkyPilot ----------------------------------------------------------------------------------------------------


def test_sky_is_given_the_job_as_one_variable(site):
    assert site.run("sky.sh", "--gpus", "A100:8", "--num-nodes=2", *ODD)[0] == 0
    (call,) = site.calls()
    assert call[:5] == ["sky", "jobs", "launch", "--yes", "--detach-run"] and call[5:7] == ["--name", "pujax"]
    assert call[7:10] == ["--gpus", "A100:8", "--num-nodes=2"] and call[10] == "--env"
    assert shlex.split(call[11].removeprefix("PUJAX_ARGS=")) == ODD and call[12:] == ["launch/skypilot.yaml"]


def test_sky_starts_scoring_workers_one_by_one_and_stops_at_a_refusal(site):
    assert site.run("sky.sh", "--workers=3", *JOB)[0] == 0
    calls = site.calls()
    assert [call[6] for call in calls] == ["pujax-score-0", "pujax-score-1", "pujax-score-2"]
    assert all(shlex.split(call[8].removeprefix("PUJAX_ARGS="))[-1] == "--stages=score" for call in calls)
    site.answers(sky=["0", "1"])
    assert site.run("sky.sh", "--workers=3", *JOB)[0] == 1 and len(site.calls()) == 2


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_task_of_sky_runs_the_job_as_it_was_given(site, nodes):
    task = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert {"name", "workdir", "num_nodes", "envs", "setup", "run"} <= task.keys()
    site.answers(python=["75"])
    environment = {
        "PATH": f"{site.root / 'bin'}:{os.environ['PATH']}", "NOTES": str(site.notes),
        "SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1",
        "PUJAX_ARGS": " ".join(map(shlex.quote, ODD)),
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", task["run"]], cwd=site.root, env=environment)
    assert done.returncode == 75 and site.calls() == [["python", *LAUNCH, *ODD]]
    if nodes == 2:
        script = task["run"].split("eval")[0] + 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"'
        out = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True).stdout
        assert out == "10.0.0.1:8476 2 1\n"


# --- Slurm -------------------------------------------------------------------------------------------------------


def test_a_slurm_job_is_one_task_a_node_with_all_its_cpus(site):
    assert site.run("slurm.sbatch", *JOB, environment={"SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "8"})[0] == 0
    options = ["--kill-on-bad-exit=0", "--ntasks-per-node=1", "--cpus-per-task=32"]
    assert site.calls() == [["srun", *options, ".venv/bin/python", *LAUNCH, *JOB]]
    asked = re.findall("^#SBATCH (.*)", (ROOT / "launch/slurm.sbatch").read_text(), re.M)
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)


@pytest.mark.parametrize(
    ("status", "array", "requeued"), [("75", "", "7"), ("75", "5", "5_3"), ("0", "", ""), ("2", "", ""), ("1", "5", "")]
)
def test_slurm_queues_a_job_again_after_75_alone(site, status, array, requeued):
    site.answers(srun=[status])
    ids = {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": "3"} if array else {}
    ended, _, _ = site.run("slurm.sbatch", *JOB, environment=ids)
    calls = site.calls()
    assert calls[1:] == ([["scontrol", "requeue", requeued]] if requeued else [])
    assert ended == (0 if requeued else int(status))


def test_a_cancelled_slurm_job_is_not_queued_again(site):
    script = site.start("slurm.sbatch", *JOB, environment={"WAIT": "1"}, start_new_session=True)
    site.wait_for(1)
    os.killpg(script.pid, signal.SIGTERM)  # as scancel does
    script.communicate(timeout=10)
    assert script.returncode == 75 and [call[0] for call in site.calls()] == ["srun"]


def test_every_gpu_of_a_node_is_the_task_s(site):
    stub = site.root / "bin/srun"
    stub.write_text(stub.read_text().replace('"$@"\n', '"$JAX_LOCAL_DEVICE_IDS"\n', 1))
    for count, ids in ((4, "0,1,2,3"), (1, "0")):
        assert site.run("slurm.sbatch", *JOB, environment={"SLURM_GPUS_ON_NODE": str(count)})[0] == 0
        assert site.calls() == [["srun", ids]]


# --- the image ---------------------------------------------------------------------------------------------------


def test_the_image_is_made_of_what_is_there():
    lines = (ROOT / "launch/Containerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [word for word, _ in steps] == [
        "FROM", "ARG", "COPY", "COPY", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT"
    ]  # fmt: skip
    copied = [path for word, rest in steps if word == "COPY" for path in rest.split()[:-1]]
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {project["readme"], *project["license-files"], "pyproject.toml", "pujax", "configs"}
    assert needed == set(copied)
    extras = re.search(r"\[(.*)\]", dict(steps)["RUN"])[1].split(",")
    assert extras[0] == "${EXTRA}" and {"cuda", "tpu", *extras[1:]} <= project["optional-dependencies"].keys()
    assert dict(steps)["FROM"] == "python:3.12-slim" and dict(steps)["USER"] != "root"
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["python", "-m", "pujax.launch"]
