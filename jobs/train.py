"""`genray train` as a Ray job, with the same arguments.

ray job submit --submission-id first --runtime-env jobs/runtime_env.yaml --working-dir . -- \
    python jobs/train.py demo --name first --storage_path /shared/runs
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
