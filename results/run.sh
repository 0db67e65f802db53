#!/usr/bin/env bash
# Every run behind REPORT.md. A finished run is recognised, a stopped one goes on, so this may be started as often as
# needed, also two parts at a time:
#
#     results/run.sh             # all; on two CPU cores about ten hours
#     results/run.sh main1       # or some of: main1 main2 readouts models ablations controls extra judge
#
# Runs go to runs/, and what a table needs of each (settings, metrics, verdict; no weights) to results/.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${SEEDS:-0 1 2}

keep() {  # the small files of a finished run
  mkdir -p "results/$1"
  cp runs/"$1"/config.json runs/"$1"/metrics.json* "results/$1/"
  if [ -f "runs/$1/verdict.json" ]; then cp "runs/$1/verdict.json" "results/$1/"; fi
}
model() {  # model NAME SEED FLAGS...: a reward model
  python reward.py --rm "runs/$1-s$2" --rm_seed "$2" "${@:3}" && keep "$1-s$2"
}
align() {  # align NAME REWARD_MODEL SEED FLAGS...: a REINFORCE run
  python reinforce.py --rm "runs/$2-s$3" --out "runs/$1-s$3" --seed "$3" --rm_seed "$3" "${@:4}" && keep "$1-s$3"
}

main1() {  # level 1
  for s in $seeds; do model rm1 "$s" --level 1; align l1 rm1 "$s" --level 1; done
}
main2() {  # level 2, its mean
  for s in $seeds; do model rm2 "$s" --level 2; align l2-mean rm2 "$s" --level 2; done
}
readouts() {  # every other way to read the distribution
  for s in $seeds; do
    for r in win variance entropy entropic; do align "l2-$r" rm2 "$s" --level 2 --readout $r; done
  done
}
models() {  # level 2 without ties, and with the ratings
  for s in $seeds; do
    model rm2-strict "$s" --level 2 --tie_weight 0
    model rm2-anchor "$s" --level 2 --anchor 1
  done
}
ablations() {  # level 1, one setting changed at a time
  for s in $seeds; do
    for b in mean none; do align "l1-baseline-$b" rm1 "$s" --level 1 --baseline $b; done
    for b in 0 0.1 0.3; do align "l1-beta-$b" rm1 "$s" --level 1 --beta $b; done
    for r in 1e-6 1e-5 5e-5; do align "l1-lr-$r" rm1 "$s" --level 1 --lr $r; done
    align l1-eos-0 rm1 "$s" --level 1 --eos_penalty 0
    for n in 10 40; do align "l1-steps-$n" rm1 "$s" --level 1 --steps $n; done
  done
}
controls() {  # a reward model of shuffled labels: what "improvement" is there against noise?
  python - <<'CODE'
import json, random
from pathlib import Path
rows = [json.loads(line) for line in open("data/demo_pairs.jsonl", encoding="utf-8")]
coin = random.Random(0)
for row in rows:
    if coin.random() < 0.5:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row["chosen_score"], row["rejected_score"] = row["rejected_score"], row["chosen_score"]
Path("runs").mkdir(exist_ok=True)
Path("runs/shuffled.jsonl").write_text("\n".join(map(json.dumps, rows)))
CODE
  for s in $seeds; do
    model rm1-shuffled "$s" --level 1 --data runs/shuffled.jsonl
    align l1-shuffled rm1-shuffled "$s" --level 1 --data runs/shuffled.jsonl
  done
}
extra() {  # best-of-n, a length prompt, the variance of the gradient
  python results/controls.py
  python results/variance.py
}
judge() {  # every policy by every reward model: those of the other seeds and level are independent of it
  for s in $seeds; do
    python eval.py --policies "l1=runs/l1-s$s" "l2=runs/l2-mean-s$s" --rewards runs/rm1-s0 runs/rm1-s1 runs/rm1-s2 \
      runs/rm2-s0 runs/rm2-s1 runs/rm2-s2 --seeds "$s" --out "results/judge-s$s"
  done
}

for part in "${@:-main1 main2 readouts models ablations controls extra judge}"; do
  for name in $part; do $name; done
done
