#!/usr/bin/env bash
# Runs everything that needs a GPU, in ten minutes: `bash tools/gpu_check.sh [FOLDER]`. The script builds for this
# machine's GPU with the installed tools, runs the GPU tests and the benchmark, and then the sanitizers and all other
# tests as far as time allows. It downloads nothing and installs only into a temporary folder. It writes log.txt,
# summary.json and the benchmark's report to FOLDER (default: gpu-check/). The exit status is 0 if all stages passed.
set -uo pipefail
root=$(realpath "$(dirname "$0")/..")
mkdir -p "${1:-$root/gpu-check}" && out=$(realpath "${1:-$root/gpu-check}") || exit 2
cd "$root" || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH="$PATH:/usr/local/cuda/bin" PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONFAULTHANDLER=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1
python=${PYTHON:-python3}
pytest=("$python" -m pytest -q -p no:cacheprovider -p no:benchmark) # pytest-benchmark warns when used with xdist
parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8) # tests spend most time in the reference, which uses one core

all=${SECONDS_FOR_ALL:-570} # time limit of the whole script, in seconds
chosen=16                   # tests per sanitizer, which is slow: every n-th, and those below, one for each kernel
export always='every_small_size\[adam-float32-default\]|every_storage\[adam-float32-q8-float32-default\]'
always+='|from_the_last_step\[adam-float32-options1\]|test_replays\[captured\]'
enough=20                   # seconds; with less time left, only the stage that prints the figures is begun
failed=0
: >"$out/log.txt"
: >"$work/stages"

# stage NAME SECONDS COMMAND...: runs a command with a time limit and notes its result and the last line of its output.
stage() {
  local name=$1 most=$2 begin=$SECONDS left=$((all - SECONDS)) result
  shift 2
  printf '\n== %s\n' "$name"
  if ((left < enough)) && [[ $name != speed ]]; then
    note "$name" "left out" 0 "no time was left"
    return
  fi
  ((most < left)) || most=$((left < enough ? enough : left))
  { timeout -s INT -k 10 "$most" "$@" >"$work/log" 2>&1 </dev/null; } 2>/dev/null # hides bash's "Killed"
  local status=$?
  case $status in
    0) result=passed ;;
    124 | 137) result="out of time" ;;
    *) result="failed ($status)" ;;
  esac
  # The sanitizers and all other tests are run as far as time allows.
  if [[ $name =~ ^(memcheck|racecheck|initcheck|others)$ && $result == "out of time" ]] &&
    ! grep -qE '[0-9]+ (failed|error)|ERROR SUMMARY: [1-9]' "$work/log"; then
    result="cut short"
  # Uninitialized reads in other libraries' kernels are ignored.
  elif [[ $name == initcheck && $result == failed* ]] && grep -q '[0-9] passed' "$work/log" &&
    grep -q 'ERROR SUMMARY' "$work/log" && ! grep -qE 'gradstep::cuda|[0-9]+ (failed|error)' "$work/log"; then
    result=passed
  elif [[ $result != passed ]]; then
    failed=1
  fi
  if [[ $result == failed* || $name == speed ]]; then tail -n 20 "$work/log"; fi
  { printf '\n== %s: %s\n' "$name" "$*" && tail -c 200000 "$work/log"; } >>"$out/log.txt"
  note "$name" "$result" $((SECONDS - begin)) "$(grep -v '^\s*$' "$work/log" | tail -n 1)"
}

# note NAME RESULT SECONDS WORDS: adds a row to the table.
note() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(cut -c -100 <<<"$4" | tr -d '\t')" >>"$work/stages"; }

stage tools 90 "$python" -c 'import cupy, hypothesis, ml_dtypes, ninja, pybind11, pytest, rich, scikit_build_core, torch'
stage build 150 "$python" -m pip install -v . --no-build-isolation --no-deps --target "$work/site" \
  -C build-dir="$work/build" -C cmake.define.GRADSTEP_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native
# Without a GPU its tests would be skipped, and the check would appear to pass.
stage device 60 "$python" -c "import cupy, gradstep
assert gradstep.show_config('dicts')['cuda']['available'], gradstep.show_config('dicts')['cuda']
print(cupy.cuda.runtime.getDeviceProperties(0)['name'].decode(), cupy.arange(3).sum())"
((failed == 0)) || all=0 # the remaining stages would be meaningless
stage gpu 200 "${pytest[@]}" "${parallel[@]}" tests -m gpu
stage benchmark 220 "$python" -m benchmarks --parts cuda_large cuda_many cuda_storage --output "$work/report"
cp "$work/report/results.json" "$work/report/README.md" "$out" 2>/dev/null
stage speed 30 "$python" -m benchmarks.cuda_guard "$work/report/results.json"

if command -v compute-sanitizer >/dev/null; then
  timeout 60 "${pytest[@]}" tests -m gpu --collect-only 2>/dev/null | grep '::' >"$work/tests"
  awk -v n="$(wc -l <"$work/tests")" -v k="$chosen" \
    '$0 ~ ENVIRON["always"] || int(NR * k / n) > int((NR - 1) * k / n)' "$work/tests" >"$work/chosen"
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # one allocation per array, so that accesses beyond an array are detected
  for tool in memcheck racecheck initcheck; do
    # Only gradstep's kernels are checked, except by initcheck, which must also see other libraries' writes.
    [[ $tool == initcheck ]] && kernels=() || kernels=(--kernel-name kernel_substring=gradstep)
    stage "$tool" 50 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 10000 --report-api-errors no \
      "${kernels[@]}" "${pytest[@]}" -m gpu "@$work/chosen"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  note sanitizers "left out" 0 "compute-sanitizer is not installed"
fi

stage others "$all" "${pytest[@]}" tests -m "not gpu and not live"

"$python" - "$work/stages" "$out/summary.json" "$(git describe --always --dirty 2>/dev/null)" "$SECONDS" <<'PYTHON'
import json
import sys

stages, summary, commit, seconds = sys.argv[1:]
names = ("stage", "result", "seconds", "words")
with open(stages, encoding="utf-8") as file:
    rows = [dict(zip(names, line.rstrip("\n").split("\t"))) for line in file]
with open(summary, "w", encoding="utf-8") as file:
    json.dump({"commit": commit, "seconds": int(seconds), "stages": rows}, file, indent=2)
print()
for row in rows:
    print(f"{row['stage']:12}{row['result']:14}{row['seconds']:>4} s  {row['words']}")
PYTHON
exit "$failed"
