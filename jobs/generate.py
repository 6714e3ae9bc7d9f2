"""`genray generate` as a Ray job, with the same arguments.

ray job submit --working-dir . -- python jobs/generate.py demo --out /shared/anchors --anchors 100000
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
