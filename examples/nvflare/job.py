"""Federated averaging with two sites: run in the simulator, or export the job for real sites.

Run: python job.py FOLDER [--job-only] [--external] [--on-violation sanitise]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from network import Network
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

from riskaudit.integrations.nvflare import RiskFilter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--job-only", action="store_true", help="only write the job, for sites with the filter")
    parser.add_argument("--external", action="store_true", help="run the script in a process of its own on every site")
    parser.add_argument("--on-violation", default="block")
    parser.add_argument("--num-rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(Path(__file__).parent)
    recipe = FedAvgRecipe(
        name="guarded", model=Network(), min_clients=2, num_rounds=options.num_rounds, train_script="client.py",
        train_args=f"--on-violation {options.on_violation} --logs {folder}", launch_external_process=options.external,
    )  # fmt: skip
    if options.job_only:
        recipe.export(str(folder))
        print(f"wrote {folder / 'guarded'}")
        return
    # The simulator takes no site's privacy.json.
    recipe.add_client_output_filter(RiskFilter(), tasks=["train"])
    recipe.execute(SimEnv(num_clients=2, num_threads=2, workspace_root=str(folder)))


if __name__ == "__main__":
    main()
