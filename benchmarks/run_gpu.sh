#!/usr/bin/env bash
# Measures everything that docs/performance.md promises for a GPU, in parts of under ten minutes.
#
#   benchmarks/run_gpu.sh                        all parts; those that have their result are skipped
#   benchmarks/run_gpu.sh --parts upscale_1k,upscale_2k
#   benchmarks/run_gpu.sh --dry-run              list the parts and whether their results are there
#   benchmarks/run_gpu.sh --date 2026-12-01      go on with the results of that day
#   benchmarks/run_gpu.sh --tiny --device cpu    prove the script itself, on any machine
#
# Needs torch and numpy. Results: benchmarks/results/gpu_DEVICE_DATE/PART.json, or the folder that --out names.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"

python="${PYTHON:-python3}" parts="" day="$(date +%F)" out="" dry=no limit_s=590
options=() kind=gpu
while (($#)); do
  case "$1" in
    --parts) parts="${2:?--parts takes names with commas between them}"; shift 2 ;;
    --date) day="${2:?--date takes a day}"; shift 2 ;;
    --out) out="${2:?--out takes a folder}"; shift 2 ;;
    --device) options+=(--device "${2:?--device takes cpu or cuda[:i]}"); shift 2 ;;
    --limit) limit_s="${2:?--limit takes seconds}"; shift 2 ;;
    --tiny) options+=(--tiny); kind=tiny; shift ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "run_gpu.sh: what is $1? See --help." >&2; exit 2 ;;
  esac
done

part() { "$python" -m benchmarks.part ${options[@]+"${options[@]}"} "$@"; }

list="$(part --list)" || exit 1
known="$(cut -d' ' -f1 <<<"$list")"
chosen="${parts//,/ }"
for name in $chosen; do
  grep -qx -- "$name" <<<"$known" || { echo "run_gpu.sh: no part is called $name; --dry-run lists them." >&2; exit 2; }
done
if [[ -z "$out" ]]; then
  device="$(part --name)" || exit 1
  out="benchmarks/results/${kind}_${device}_$day"
fi

failed=()
for name in ${chosen:-$known}; do
  result="$out/$name.json"
  what="$(grep -- "^$name " <<<"$list" | cut -c34-)"
  if [[ -e "$result" ]]; then
    echo "$name: there already, $result"
  elif [[ "$dry" == yes ]]; then
    echo "$name: to do, $what"
  else
    mkdir -p "$out"
    echo "$name: $what"
    if timeout "$limit_s" "$python" -m benchmarks.part ${options[@]+"${options[@]}"} "$name" --out "$result" 2>&1 |
      tee "$out/$name.log" | tail -n 20; then
      rm -f "$out/$name.log"
    else
      failed+=("$name")
      echo "$name: failed or took more than $limit_s s; $out/$name.log says more" >&2
    fi
  fi
done
[[ "$dry" == yes ]] && exit 0

part --table "$out"
if ((${#failed[@]})); then
  echo "run_gpu.sh: without a result: ${failed[*]}. The same command tries them again." >&2
  exit 1
fi
