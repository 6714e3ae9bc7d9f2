"""`genray train` as a Ray job: `ray job submit --working-dir . -- python jobs/train.py demo --name first`."""

import sys

from genray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
