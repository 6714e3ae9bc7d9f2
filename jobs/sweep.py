"""`genray sweep` as a Ray job, with the same arguments.

ray job submit --working-dir . -- python jobs/sweep.py demo --name stds --grid view.std=0.5,1 seed=0,1,2 --parallel 2 \\
    --storage_path /shared/runs
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
