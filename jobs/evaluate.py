"""`genray evaluate` as a Ray job, with the same arguments.

ray job submit --working-dir . -- python jobs/evaluate.py /shared/runs/first
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
