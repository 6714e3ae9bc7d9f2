"""`genray steer` as a Ray job, with the same arguments; it uses one device and starts no Ray tasks.

ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/steer.py PRESET --out /shared/walks.safetensors
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["steer", *sys.argv[1:]])
