#!/bin/sh
# Usage: PYTHON=/path/to/python proto/generate.sh DIRECTORY: generates DIRECTORY/{v1,runner} from proto/.
# protoc names modules after the files' paths (hvd/v1), which would collide with the daemon's own package, so they become hvapi's.
set -eu
target=$1
mkdir -p "$target"
target=$(cd "$target" && pwd)
python=${PYTHON:-python3}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cd "$(dirname "$0")"
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I . \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
    $(find hvd -name '*.proto' | sort)
# The runner's protocol has messages only.
find "$out" \( -name '*_pb2_grpc.py' -o -name '*_pb2_grpc.pyi' \) -path '*/runner/*' -delete
find "$out" \( -name '*.py' -o -name '*.pyi' \) -exec sed -i \
    -e 's/from hvd\.\(runner\.v1\|v1\) import/from hvapi.\1 import/' \
    -e 's/^import hvd\.\(runner\.v1\|v1\)\./import hvapi.\1./' \
    -e 's/\bhvd\.\(runner\.v1\|v1\)\.\([a-z_]*_pb2\)/hvapi.\1.\2/g' {} +
rm -rf "$target/v1" "$target/runner"
mkdir -p "$target/v1" "$target/runner/v1"
touch "$target/v1/__init__.py" "$target/runner/__init__.py" "$target/runner/v1/__init__.py"
cp "$out"/hvd/v1/*.py "$out"/hvd/v1/*.pyi "$target/v1/"
cp "$out"/hvd/runner/v1/*.py "$out"/hvd/runner/v1/*.pyi "$target/runner/v1/"
