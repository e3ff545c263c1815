#!/bin/bash
# Figures of one accelerator (80 to 140 GB) in at most eight minutes, one line of JSON each, in gpu.jsonl:
#     benchmarks/gpu.sh [FILE] [--tiny] [--seconds 470]
# Run again, it measures what FILE does not have yet. --tiny measures nano's networks on a CPU: a test of the script.
set -e
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src" HF_HUB_OFFLINE=1
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
