"""Runs, caches and ablations that are killed and run again are identical to uninterrupted ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Kills of each kind at scale 1.
KILLS = {
    "training": 16,
    "epochs": 6,
    "accumulating": 6,
    "asynchronous_checkpoints": 4,
    "loading": 4,
    "two_processes": 4,
    "clock": 8,
    "copy": 8,
    "caching": 12,
}
KILLS |= {"ablation": 4}

pytestmark = pytest.mark.slow


def run(folder: Path, script: str, *options: str) -> dict:
    # Threads of other libraries do not survive a fork.
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KILLS)
def test_kills_at_random_moments_lose_nothing(kind, tmp_path, campaign):
    kills = campaign.number(KILLS[kind])
    result = run(tmp_path, "kill_runs.py", kind, "--kills", str(kills), "--seed", str(campaign.seed))
    assert result["tried"] == kills
    name = kind if kind in ("clock", "copy") else f"kills of {kind.replace('_', ' ')}"
    campaign.survived(name, kills - len(result["lost"]))
    for what in result["lost"]:
        campaign.lost(name, what)


def test_crashes_at_the_worst_moments_lose_nothing(tmp_path, campaign):
    result = run(tmp_path, "crash_points.py")
    campaign.survived("worst moments", result["tried"] - len(result["lost"]))
    for what in result["lost"]:
        campaign.lost("worst moments", what)
