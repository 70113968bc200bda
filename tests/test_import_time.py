import json
import subprocess
import sys
from pathlib import Path

HEAVY = ["matplotlib", "captum", "transformers", "skimage", "sklearn", "pandas", "ray", "efficientnet_lite_pytorch"]
PROGRAM = """
import json, sys
import torch
before = set(sys.modules)
import layerlens
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def test_importing_layerlens_loads_nothing_heavy():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert "layerlens" in loaded
    assert not set(loaded) & set(HEAVY)
