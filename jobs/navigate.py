"""`genray navigate` as a Ray job, with the same arguments; it uses one device and starts no Ray tasks.

ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/navigate.py PRESET --out /shared/n.safetensors
"""

import sys

from genray.cli.main import main

if __name__ == "__main__":
    main(["navigate", *sys.argv[1:]])
