#!/bin/bash
# All checks and measurements of the fused engines that need a GPU, in under six minutes: each part has a limit.
#   bash experiments/benchmarks/fused_cuda.sh [--rehearse]     on the CPU, with tiny sizes
# Logs and numbers go to $OUT, or to the folder fused_cuda.
cd "$(dirname "$0")/../.." || exit 1
out=${OUT:-fused_cuda}
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

part() { # name, seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name (at most $limit s)"
    timeout -k 5 "$limit" "$@" 2>&1 | grep --line-buffered -v -E "^(GPU available|TPU available|.*litlogger|Using bfloat16|.Trainer.fit. stopped)" | tee "$out/$name.log"
    echo "== $name ended with ${PIPESTATUS[0]}"
}

tests="-m pytest tests/sweeps/fused/test_cuda.py -q -p no:cacheprovider -o addopts= -W ignore --noconftest -x --maxfail=100"
if [ "$1" = --rehearse ]; then
    part tests 60 "$python" $tests
    part compare 120 "$python" experiments/benchmarks/fused.py --device cpu --sizes 4,8 --rounds 2 --seconds 0.5 --out "$out/compare.json"
    exit
fi
part tests "${TESTS:-110}" "$python" $tests --durations=5
unset CUBLAS_WORKSPACE_CONFIG
part profile "${PROFILE:-100}" "$python" experiments/benchmarks/fused_profile.py --limit "$((${PROFILE:-100} - 15))" --out "$out/profile.json"
part compare "${COMPARE:-140}" "$python" experiments/benchmarks/fused.py --device cuda --rounds "${ROUNDS:-2}" --seconds "${SECONDS_EACH:-1.5}" --limit "$((${COMPARE:-140} - 40))" --out "$out/compare.json" ${ARGUMENTS:-}
