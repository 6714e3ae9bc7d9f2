"""Pictures of MLflow's pages, for docs/mlflow.md: a store's runs as a browser shows them.

    python docs/screenshots.py --sweep NAME [--runs runs] [--experiment genray]

Serves the store, opens its pages in headless Chromium, and writes docs/mlflow-….png, the sweep's own picture among
them. Needs chromium (Debian: `apt-get install chromium`) and a finished sweep, that of docs/mlflow.md for example.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from browser import Page, page

from genray.tracking import mlflow_store

DOCS = Path(__file__).parent
PATIENCE_S = 120.0
SETTLED_S = 3.0
"""Seconds for animations and pictures, once a page shows what is waited for."""
METRIC = "final.trained.linear"


@contextmanager
def served(store: str) -> Iterator[str]:
    """The address of a server of this store, which lives as long as the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [*command, "--backend-store-uri", store],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if time.monotonic() > deadline:
                raise TimeoutError("mlflow server did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/#"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def comparison(base: str, experiment_id: str, run_ids: list[str]) -> str:
    """Address of the page that compares these runs."""
    return f"{base}/compare-runs?runs={quote(json.dumps(run_ids))}&experiments={quote(json.dumps([experiment_id]))}"


def quiet(tab: Page, base: str) -> None:
    """Put away what covers the pages of a browser that sees them for the first time."""
    tab.open(f"{base}/experiments")
    tab.wait_for_text("Experiments")
    time.sleep(SETTLED_S)
    tab.evaluate('document.querySelectorAll(\'[aria-label="Close"], [aria-label*="lose"]\').forEach(e => e.click())')


def only_differences(tab: Page) -> None:
    """Leave of the compared parameters, metrics and tags those in which the runs differ, and go to them."""
    tab.wait_for_text("Show diff only")
    tab.evaluate("document.querySelectorAll('[role=switch]').forEach(e => e.ariaChecked === 'true' || e.click())")
    tab.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.innerText === 'Parameters').pop().scrollIntoView(true)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--experiment", default="genray")
    parser.add_argument("--sweep", required=True)
    asked = parser.parse_args()
    store = mlflow_store.address_in(asked.runs)
    client = mlflow_store.connect(store)
    experiment = client.get_experiment_by_name(asked.experiment).experiment_id
    chosen = f"tags.sweep = '{asked.sweep}' AND tags.kind = 'run'"
    runs = list(client.search_runs([experiment], chosen))
    runs = [run for run in runs if run.info.status == "FINISHED"]
    with served(store) as base, page() as tab:
        quiet(tab, base)
        tab.open(comparison(base, experiment, [run.info.run_id for run in runs]))
        tab.wait_for_text("Parallel Coordinates Plot", METRIC)
        _shoot(tab, "compare")
        only_differences(tab)
        _shoot(tab, "differences")
        tab.open(f"{base}/experiments/{experiment}/runs/{runs[0].info.run_id}")
        tab.wait_for_text(runs[0].info.run_name, "Datasets")
        _shoot(tab, "run")
        tab.open(f"{base}/experiments/{experiment}/runs/{runs[0].info.run_id}/model-metrics")
        tab.wait_for_text("alignment")
        _shoot(tab, "curves")
    shutil.copy(asked.runs / asked.sweep / "compare.png", DOCS / "mlflow-sweep.png")


def _shoot(tab: Page, name: str) -> None:
    time.sleep(SETTLED_S)
    tab.screenshot(DOCS / f"mlflow-{name}.png")
    print(DOCS / f"mlflow-{name}.png")


if __name__ == "__main__":
    main()
