"""`genray steer` as a Ray job, with the same arguments; it takes one device and no Ray of its own.

ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/steer.py PRESET --out /shared/walks.safetensors
"""

import sys

from genray.cli import main

if __name__ == "__main__":
    main(["steer", *sys.argv[1:]])
