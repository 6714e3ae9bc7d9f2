"""`genray navigate` as a Ray job, with the same arguments; it takes one device and no Ray of its own.

ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/navigate.py PRESET --out /shared/n.safetensors
"""

import sys

from genray.cli import main

if __name__ == "__main__":
    main(["navigate", *sys.argv[1:]])
