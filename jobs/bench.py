"""`genray bench` as a Ray job, with the same arguments.

ray job submit --working-dir . -- python jobs/bench.py demo --repeats 3 --storage_path /shared/runs
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
