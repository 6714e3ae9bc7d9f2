"""Do the tests notice? Breaks the code in forty places, one at a time, and runs the tests that must fail for each.

    python tests/mutations.py                # all, about ten minutes
    python tests/mutations.py losses plan    # those whose file or change contains one of these words

The checkout stays as it is: each mutation is made in a copy. Exit code 1 if a mutation survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("genray", "jobs", "benchmarks", "docs", "tests", "cluster", "pyproject.toml", "README.md")


class Mutation(NamedTuple):
    """One change of the code, and the tests that must fail with it."""

    file: str
    """Below genray/."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: str
    """Below tests/."""


MUTATIONS = [
    # views: what is rendered
    Mutation("views/random.py", "for _ in range(10):", "for _ in range(9):", "views/test_random.py"),
    Mutation("views/random.py", "draws, use) + 0.5)", "draws) + 0.5)", "views/test_random.py"),
    Mutation("views/random.py", "outside = value >= size", "outside = value > size", "views/test_random.py"),
    Mutation("views/anchors.py", "1 + self.neighbour(", "self.neighbour(", "views/test_anchors.py"),
    Mutation("views/anchors.py", "epoch * (num_views - 1) + view - 1", "view - 1", "views/test_anchors.py"),
    Mutation("views/latent_views.py", "3**0.5 * view.std", "2**0.5 * view.std", "views/test_latent_views.py"),
    Mutation("views/latent_views.py", "_length(z) / _length(moved)", "1", "views/test_latent_views.py"),
    Mutation("views/latent_views.py", "view.scale * (2 * u", "(2 * u", "views/test_latent_views.py"),
    Mutation("views/sources/generated.py", "count - 1)  # the last", "count)  # the last", "stream/test_renderer.py"),
    Mutation("views/sources/mixed.py", "-1 - image", "image", "views/sources/test_mixed.py"),
    Mutation("views/generators/quantise.py", "add_(1).mul_(127.5)", "add_(1).mul_(127)", "views/generators"),
    # stream: which anchors a step shows, and who renders them
    Mutation("stream/plan.py", "self.window + group\n", "self.window + group - 1\n", "stream/test_reuse.py"),
    Mutation("stream/plan.py", "look_ahead < 2 * block * high", "look_ahead < block * high", "stream/test_plan.py"),
    Mutation("stream/plan.py", "fresh // self.window - 1) *", "fresh // self.window) *", "stream/test_reuse.py"),
    Mutation("stream/tickets.py", "steps[:, None] * plan.batch_size", "steps[:, None] * 2", "stream/test_tickets.py"),
    Mutation("stream/tickets.py", "len(self), self.plan.num_workers", "len(self)", "stream/test_tickets.py"),
    Mutation("stream/reuse.py", "np.arange(steps), batch_size, use=use)", "np.arange(steps), batch_size)", "stream"),
    Mutation(
        "stream/attempts.py", "if bad_images else self.max_attempts", "if False else 2", "stream/test_attempts.py"
    ),
    Mutation(
        "stream/attempts.py", "        path.unlink(missing_ok=True)\n\n    def", "\n    def", "stream/test_attempts.py"
    ),
    Mutation("stream/shares.py", "preserve_order=True", "preserve_order=False", "stream/test_shares.py"),
    # learner: what is learned from them
    Mutation("learner/losses.py", "rank * len(own)", "0", "learner/test_losses.py"),
    Mutation("learner/losses.py", "temperature / base_temperature)", "1.0)", "learner/test_losses.py"),
    Mutation("learner/losses.py", "        dist.all_reduce(total)\n", "", "learner/test_losses.py"),
    Mutation("learner/optim.py", "base * anchors / warmup_anchors", "base", "learner/test_optim.py"),
    Mutation("learner/optim.py", '"weight_decay": 0.0}', '"weight_decay": 1e-4}', "learner/test_optim.py"),
    Mutation(
        "learner/objectives/noncontrastive.py", '["embeddings"]).detach()', '["embeddings"])', "learner/objectives"
    ),
    Mutation(
        "learner/objectives/noncontrastive.py", "lerp_(parameter, rate)", "lerp_(parameter, 1)", "learner/objectives"
    ),
    Mutation("learner/learner.py", "~loss.isfinite()", "loss.isfinite()", "learner"),
    Mutation(
        "learner/recorder.py", '["step"] <= self.reached:', '["step"] < self.reached:', "learner/test_recorder.py"
    ),
    Mutation("learner/recorder.py", "self.failures = 0\n            jsonl", "jsonl", "learner/test_recorder.py"),
    Mutation("learner/balance.py", 'elapsed - seconds["wait"]', "elapsed", "learner/test_balance.py"),
    # runs: what outlives a process
    Mutation("runs/checkpoint.py", "    optimizer.load_state_dict(", "    (", "runs/test_checkpoint.py"),
    Mutation("runs/checkpoint.py", "reversed(_committed(run_directory))", "_committed(run_directory)", "runs"),
    Mutation("runs/jsonl.py", 'b"\\n" + text if cut_short else text', "text", "runs/test_jsonl.py"),
    # config and cluster: what is refused
    Mutation("config/rules.py", "stream.num_views - 1:", "stream.num_views - 2:", "config/test_rules.py"),
    Mutation("config/renamed.py", 'path.startswith(f"{former}.")', "False", "config/test_renamed.py"),
    Mutation(
        "cluster/placement.py", "bool(part.labels) or SUBCLUSTER", "True or SUBCLUSTER", "cluster/test_placement.py"
    ),
    # probes and tracking: what is reported
    Mutation("probes/knn.py", "(nearest - 1) / temperature", "0 * nearest", "probes/test_knn.py"),
    Mutation("probes/measures.py", "2 * unit(embeddings).var(0)", "unit(embeddings).var(0)", "learner/test_losses.py"),
    Mutation("tracking/tracker.py", "> reached.get(key, -1)", ">= reached.get(key, -1)", "tracking/test_tracker.py"),
]


def main(words: list[str]) -> int:
    """Make the mutations that contain one of the words, or all; returns how many survived."""
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.new}" for word in words)]
    survived = 0
    for mutation in chosen:
        outcome = "caught" if caught(mutation) else "SURVIVED"
        survived += outcome != "caught"
        print(f"{outcome:8}  {mutation.file}: {mutation.old.strip()!r} -> {mutation.new.strip()!r}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} mutations caught")
    return survived


def caught(mutation: Mutation) -> bool:
    """Whether the tests fail with the mutation, and because of it: they must run at all."""
    with tempfile.TemporaryDirectory(prefix="genray-mutation-") as directory:
        copy = Path(directory)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy / name)
        file = copy / "genray" / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            raise SystemExit(
                f"{mutation.file} must contain {mutation.old!r} once, got {text.count(mutation.old)} times"
            )
        file.write_text(text.replace(mutation.old, mutation.new))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutation.tests}"],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": directory},
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode not in (0, 1):
        raise SystemExit(
            f"the tests of {mutation.file} must run, got exit code {run.returncode}:\n{run.stdout[-2000:]}"
        )
    return run.returncode == 1


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
