#!/usr/bin/env bash
# What stands behind REPORT.md, in order. Each command goes on where it was stopped; on two CPU cores: hours.
set -euo pipefail
cd "$(dirname "$0")/.."

data() {      # prompts are in data/; sheets are read by readers between `sheets` and `collect`
  python results/experiments.py samples
  python results/experiments.py sheets A train
  python results/experiments.py sheets A held-out
  python results/experiments.py sheets B held-out
  python results/experiments.py collect
  python results/experiments.py bundle
}

rewards() {
  python results/experiments.py controls
  python results/experiments.py heads 1
  python results/experiments.py heads 2
}

main() {      # the README's command, both levels; then sheets of the policies against the SFT model
  for level in 1 2; do
    python reinforce.py --level $level
    python results/experiments.py record "level $level" runs/demo_pairs-level$level
  done
  python eval.py --policies l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2 \
    --rewards runs/demo_pairs-reward1 runs/demo_pairs-reward2 --eval_prompts 64
  python results/experiments.py cooled 0.4 runs/cooled.json l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2
  for reader in A B; do
    for policy in l1 l2; do
      python results/experiments.py duels runs/eval.json $reader sft $policy
      python results/experiments.py duels runs/cooled.json $reader "sft at 0.4" "$policy at 0.4"
    done
    python results/experiments.py aligned_sheets runs/demo_pairs-level1 $reader
  done
}

read_back() { # once the sheets are read
  python results/experiments.py collect
  for level in 1 2; do
    python results/experiments.py aligned "level $level" runs/demo_pairs-reward$level demo_pairs-level1
  done
}

"$@"
python results/tables.py
