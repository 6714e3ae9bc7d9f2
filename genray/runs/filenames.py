"""Names of the files of a run, on a disk and in an object store. `RunDirectory` says what each of them holds."""

from genray.config.files import CONFIG_FILE

CONFIG = CONFIG_FILE
METRICS = "metrics.jsonl"
BATCHES = "batches.jsonl"
PROBES = "probes.jsonl"
SYSTEM = "system.jsonl"
FAULTS = "faults.jsonl"
REPORT = "report.json"
CURVES = "report.png"
PREVIEWS = "previews"
EXPORT = "export"
MLFLOW = "mlflow.json"
UNDELIVERED = "mlflow.undelivered"
STOP = "stop"
ATTEMPTS = "attempts"
LOCK = "run.lock"
PROCESSES_PREFIX = "processes-"

CHECKPOINT_PREFIX = "checkpoint_"
"""Start of the names of checkpoints, and of Ray Train's list of them."""
CHECKPOINT_STATE = "checkpoint.json"

BIRTH = "birth.json"
"""Random id that distinguishes a run from a later one of the same name. Only for runs in an object store."""
LEASE = "driver.json"
"""The machine that drives the run now, and its last sign of life. Only in an object store."""
