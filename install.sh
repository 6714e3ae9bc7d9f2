#!/bin/sh
# Installs genray with the locked versions into a virtual environment: `make demo`, the image and the nodes of a cluster
# are all made by this.
#
#   ./install.sh [DIRECTORY [LOCK…]]     .venv where it is not given; more requirements, with their hashes
#   PYTHON=python3.12 ./install.sh       another interpreter, of 3.11 or later
#   DEVICE=cpu ./install.sh              torch for CPUs alone, which takes a quarter of the space; not checked by hash
set -eu
cd "$(dirname "$0")"
venv=${1:-.venv}
test $# = 0 || shift
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "genray needs Python 3.11 or later: PYTHON=python3.12 …")'
test -x "$venv/bin/python" || "$python" -m venv "$venv"
if ! uv=$(command -v uv); then
    uv=$venv/tools/bin/uv
    test -x "$uv" ||
        "$venv/bin/python" -m pip install --quiet --require-hashes --target "$venv/tools" -r requirements-uv.lock
fi

install() {
    command=$1
    shift
    "$uv" pip "$command" --quiet --python "$venv/bin/python" "$@"
}

if [ "${DEVICE:-gpu}" = cpu ]; then
    cuda='^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)=='
    awk "/^[a-z]/ { kept = !/$cuda/ } kept" requirements.lock >"$venv/requirements-cpu.lock"
    install sync --require-hashes --compile-bytecode "$venv/requirements-cpu.lock"
    # shellcheck disable=SC2046 # two requirements, two words
    install install --no-deps --torch-backend cpu $(grep -oE '^torch(vision)?==[^ ]+' requirements.lock)
else
    install sync --require-hashes --compile-bytecode requirements.lock
fi
for lock in "$@"; do
    install install --require-hashes -r "$lock"
done
install install --no-deps --no-build-isolation --editable .
