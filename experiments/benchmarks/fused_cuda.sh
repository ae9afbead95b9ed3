#!/bin/bash
# All checks and measurements of the fused engines that need a GPU, in under seven minutes: each part has a limit.
#   bash experiments/benchmarks/fused_cuda.sh [--rehearse]     on the CPU, with tiny sizes
# The processes that are compared with start while the tests run. Logs and numbers go to $OUT, or to the folder fused_cuda.
cd "$(dirname "$0")/../.." || exit 1
out=${OUT:-fused_cuda}
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

part() { # name, seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name (at most $limit s)"
    timeout -k 5 "$limit" "$@" 2>&1 | grep --line-buffered -v -E "^(GPU available|TPU available|.*litlogger|Using bfloat16|.Trainer.fit. stopped)" | tee "$out/$name.log"
    echo "== $name ended with ${PIPESTATUS[0]} at $SECONDS s"
}

if ! "$python" -c "import importlib.metadata as m; m.version('lrbench_pl')" 2>/dev/null; then # a checkout alone
    mkdir -p "$out/site/lrbench_pl-0.dist-info"
    printf 'Metadata-Version: 2.1\nName: lrbench_pl\nVersion: 0\n' >"$out/site/lrbench_pl-0.dist-info/METADATA"
    export PYTHONPATH="$PYTHONPATH:$PWD/$out/site"
    [ "${out#/}" = "$out" ] || export PYTHONPATH="$PYTHONPATH:$out/site"
fi
spread=$("$python" -c "import xdist; print('-n 8')" 2>/dev/null) # kernels are compiled side by side
tests="-m pytest tests/sweeps/fused/test_cuda.py tests/sweeps/fused/test_layers.py $spread -q -p no:cacheprovider -o addopts= -W ignore --noconftest -x --maxfail=100"
bench=experiments/benchmarks
rm -f "$out/go"
if [ "$1" = --rehearse ]; then
    part tests 60 "$python" $tests
    part compare 120 "$python" $bench/fused.py --device cpu --sizes 4,8 --rounds 2 --seconds 0.5 --out "$out/compare.json"
    part program 120 "$python" $bench/fused_program.py --trainer cpu --seeds 2 --steps 200 --engine stacked --limit 60
    exit
fi
part compare "${COMPARE:-320}" "$python" $bench/fused.py --device cuda --nets "${NETS:-lenet,cnn3,resnet20}" --rounds "${ROUNDS:-3}" \
    --seconds "${SECONDS_EACH:-1}" --each "${EACH:-55}" --wait "$out/go" --out "$out/compare.json" &
compare=$!
CUBLAS_WORKSPACE_CONFIG=:4096:8 part tests "${TESTS:-80}" "$python" $tests --durations=5
touch "$out/go"
wait $compare
part kernels "${KERNELS:-50}" "$python" $bench/fused_profile.py --kernels --limit "$((${KERNELS:-50} - 12))" --out "$out/kernels.json"
part program "${PROGRAM:-110}" "$python" $bench/fused_program.py --steps 500 --limit "$(((${PROGRAM:-110} - 3) / 2))"
