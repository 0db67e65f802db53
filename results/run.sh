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

main() {      # the README's command, both levels
  for level in 1 2; do
    python reinforce.py --level $level
    python results/experiments.py record policy "level $level" runs/demo_pairs-level$level
    python results/experiments.py record reward "default, level $level" runs/demo_pairs-reward$level
  done
}

"$@"
python results/tables.py
