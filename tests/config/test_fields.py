"""The reference of all fields."""

from __future__ import annotations

from genray.config.fields import reference
from genray.config.load import build
from genray.config.run import MAY_CHANGE_ON_RESUME

CUSTOM = {"kind": "custom", "target": "package.module:factory"}
EXPORTED = {"kind": "exported", "path": "generator.pt2"}
DIFFUSERS = {"kind": "diffusers", "model": "a/pipeline", "prompts": ["a cat", "a dog"]}


def test_the_reference_says_what_may_change() -> None:
    section, found = "", set()
    for line in reference().splitlines():
        if line.startswith("["):
            section = line[1:].partition("]")[0]
            name = section
        elif " = " in line:
            name = f"{section}.{line.strip().partition(' = ')[0]}".removeprefix(".")
        if "May change when a run is resumed." in line:
            found.add(name)
    placed = {"placement", "render_on", "pool", "learners", "probe.num_cpus", "probe.num_gpus", "probe.timeout_s"}
    assert found == placed | {"tracking", "stream.ticket_batches", "generator.cuda_graphs"}
    assert set(MAY_CHANGE_ON_RESUME) == found | {"storage_path", "training.log_every"}


def test_the_reference_explains_every_field() -> None:
    section, found = "", set()
    for line in reference().splitlines():
        if line.startswith("["):
            section = line[1:].partition("]")[0]
            assert line.partition("]")[2].strip(), line
        elif line:
            name, _, default_and_meaning = line.strip().partition(" = ")
            meaning = default_and_meaning.partition("  ")[2].strip()
            assert meaning.endswith("."), f"{section}.{name} has no docstring"
            found.add(f"{section}.{name}".lstrip("."))
    kinds = [
        {},
        {"view": {"kind": "none"}, "optimizer": {"kind": "lars"}, "generator": CUSTOM},
        {"view": {"kind": "independent"}, "optimizer": {"kind": "adamw"}, "generator": DIFFUSERS},
        {"generator": EXPORTED, "source": {"kind": "mix", "directory": "x"}},
        {"view": {"kind": "none"}, "source": {"kind": "images", "directory": "x"}, "pool": {"num_gpus": 0}},
        {"source": {"kind": "stored", "directory": "x"}, "pool": {"num_gpus": 0}},
        *({"objective": {"kind": kind}} for kind in ("supcon", "inverter", "classifier", "simsiam", "byol")),
    ]
    for values in kinds:
        for section, fields in build({"name": "x", **values}).to_dict().items():
            names = [f"{section}.{name}" for name in fields] if isinstance(fields, dict) else [section]
            kinded = ("view", "optimizer", "generator", "source", "objective")
            assert set(names) - {f"{section}.kind" for section in kinded} <= found
