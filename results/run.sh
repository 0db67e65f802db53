#!/usr/bin/env bash
# Every run behind REPORT.md. A finished run is recognised, a stopped one goes on, so this may be started as often as
# needed, also two parts at a time (`extra` and `judge` start from their beginning):
#
#     results/run.sh             # all on the demo set; on two CPU cores about twelve hours
#     results/run.sh main        # or some of the parts below
#     results/run.sh human hh_helpful.jsonl helpsteer2.jsonl     # the part on files of human pairs: five hours more
#
# Runs go to runs/, and what a table needs of each (settings, metrics, verdict; no weights) to results/.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${SEEDS:-0 1 2}
more=${MORE_SEEDS:-3 4}  # reward models are cheaper

keep() {  # the small files of a finished run
  mkdir -p "results/$1"
  cp runs/"$1"/config.json runs/"$1"/metrics.json* "results/$1/"
  for file in verdict.json samples.md; do
    if [ -f "runs/$1/$file" ]; then cp "runs/$1/$file" "results/$1/"; fi
  done
}
model() {  # model NAME SEED FLAGS...: a reward model
  python reward.py --rm "runs/$1-s$2" --rm_seed "$2" "${@:3}" && keep "$1-s$2"
}
align() {  # align NAME REWARD_MODEL SEED FLAGS...: a REINFORCE run
  python reinforce.py --rm "runs/$2-s$3" --out "runs/$1-s$3" --seed "$3" --rm_seed "$3" "${@:4}" && keep "$1-s$3"
}

main() {  # level 1, and level 2 by its mean
  for s in $seeds; do
    for l in 1 2; do model rm$l "$s" --level $l; done
    align l1 rm1 "$s" --level 1
    align l2-mean rm2 "$s" --level 2
  done
}
readouts() {  # every other way to read the distribution
  for s in $seeds; do
    for r in win variance entropy entropic; do align "l2-$r" rm2 "$s" --level 2 --readout $r; done
  done
}
models() {  # level 2 without ties, and with the ratings; both levels with more seeds, and with fewer pairs
  for s in $seeds $more; do
    for l in 1 2; do model rm$l "$s" --level $l; done
    model rm2-strict "$s" --level 2 --tie_weight 0
    model rm2-anchor "$s" --level 2 --anchor 1
  done
  for s in $seeds; do
    for n in 100 200; do
      for l in 1 2; do model "rm$l-pairs-$n" "$s" --level $l --pairs $n; done
    done
  done
}
ablations() {  # level 1, one setting changed at a time
  for s in $seeds; do
    for b in 0 0.03 0.05 0.1; do align "l1-beta-$b" rm1 "$s" --level 1 --beta $b; done
    for b in mean none; do align "l1-baseline-$b" rm1 "$s" --level 1 --baseline $b; done
    align l2-baseline-none rm2 "$s" --level 2 --baseline none
    for r in 1e-6 1e-5 5e-5; do align "l1-lr-$r" rm1 "$s" --level 1 --lr $r; done
    align l1-eos-0 rm1 "$s" --level 1 --eos_penalty 0
    align l2-beta-0.05 rm2 "$s" --level 2 --beta 0.05
  done
}
shuffled() {  # a reward model of shuffled labels: what "improvement" is there against noise? It still has the pairs
  # "finished answer > its own prefix", which are not shuffled; `noise` has neither them nor the penalty
  for s in $seeds; do
    python results/experiments.py shuffle "$s"
    model rm1-shuffled "$s" --level 1 --data "runs/shuffled-$s.jsonl"
    align l1-shuffled rm1-shuffled "$s" --level 1 --data "runs/shuffled-$s.jsonl"
    model rm1-noise "$s" --level 1 --data "runs/shuffled-$s.jsonl" --cut 0
    align l1-noise rm1-noise "$s" --level 1 --data "runs/shuffled-$s.jsonl" --cut 0 --eos_penalty 0
  done
}
onpolicy() {  # a reward model that has also seen samples, as rejected answers
  [ -f runs/onpolicy.jsonl ] || python results/experiments.py onpolicy
  for s in $seeds; do
    model rm1-onpolicy "$s" --level 1 --data data/demo_pairs.jsonl runs/onpolicy.jsonl --pairs 1000
    align l1-onpolicy rm1-onpolicy "$s" --level 1 --data data/demo_pairs.jsonl
  done
}
read_samples() {  # a reward model that has also seen pairs of samples with readers' verdicts (results/read/README.md)
  [ -f results/read/pairs.jsonl ] || { python results/experiments.py sampled; return; }  # to be read first
  python results/experiments.py preferred
  for s in $seeds; do
    model rm1-read "$s" --level 1 --data data/demo_pairs.jsonl runs/read.jsonl --pairs 1000
    align l1-read rm1-read "$s" --level 1 --data data/demo_pairs.jsonl
    python results/experiments.py preferred "$s"  # the same pairs, verdicts by a coin
    model rm1-read-shuffled "$s" --level 1 --data data/demo_pairs.jsonl "runs/read-shuffled-$s.jsonl" --pairs 1000
  done
  python results/experiments.py compared runs/rm{1,2,1-read,1-read-shuffled}-s{0,1,2}
  [ -f results/blind/sft-cooler-s0.key.json ] || python results/experiments.py cooler
}
cool() {  # the same from an SFT model of temperature 0.5; reward models do without its head, so they are the same
  [ -d runs/sft-cool ] || python results/experiments.py cool
  for s in $seeds; do
    for r in rm1 rm1-read rm2; do
      mkdir -p "runs/$r-cool-s$s"
      cp -r "runs/$r-s$s"/{model,metrics.json} "runs/$r-cool-s$s/"
    done
    for r in "" -read; do
      align "l1$r-cool" "rm1$r-cool" "$s" --level 1 --sft runs/sft-cool --data data/demo_pairs.jsonl
    done
  done
}
extra() {
  python results/experiments.py controls
  for l in 1 2; do python results/experiments.py variance rm$l-s0; done
  python results/experiments.py distributions
  for s in $seeds; do python results/experiments.py overoptimise "$s"; done
}
judge() {  # every policy by the reward models of the other seeds, which never met it
  for s in $seeds; do
    policies=l1=runs/l1-s$s
    for r in mean win variance entropy entropic; do policies+=" l2-$r=runs/l2-$r-s$s"; done
    rewards=
    for o in 0 1 2; do [ $o = "$s" ] || rewards+=" runs/rm1-s$o runs/rm2-s$o"; done
    python eval.py --policies $policies --rewards $rewards --seeds "$s" --out "results/judge-s$s"
    python eval.py --policies l1-eos-0=runs/l1-eos-0-s$s l1-shuffled=runs/l1-shuffled-s$s --rewards $rewards \
      --seeds "$s" --out "results/judge-s$s-controls"
    python eval.py --policies l1-noise=runs/l1-noise-s$s --rewards $rewards --seeds "$s" --out "results/judge-s$s-noise"
    python eval.py --policies l1-beta-0.05=runs/l1-beta-0.05-s$s l1-read=runs/l1-read-s$s --rewards $rewards \
      --seeds "$s" --out "results/judge-s$s-more"
  done
}
blind() {  # sheets to be read; see results/blind/RUBRIC.md. Sampling seeds that nothing else uses
  for s in $seeds; do
    for p in l1 l2-mean l1-beta-0.05 l1-onpolicy l1-shuffled l1-read l1-cool l1-read-cool; do
      if [ ! -d runs/$p-s$s ]; then continue; fi
      if [ -f results/blind/$p-s$s.key.json ]; then continue; fi  # it has been read
      o=-s$(((s + 1) % 3)) sft=
      if [[ $p = *-cool ]]; then o=-cool$o sft="--sft runs/sft-cool"; fi
      python eval.py --policies $p=runs/$p-s$s --rewards runs/rm{1,2}$o --eval_prompts 64 --max_new 128 --seeds $((7 + s)) \
        --blind $p --out results/blind/$p-s$s $sft
    done
  done
  [ -f results/blind/written.key.json ] || python results/experiments.py written
}
human() {  # human HH HELPSTEER: candidates for a level-1 reward model. The one with the lowest mean loss over all
  # validation pairs is taken, and confirmed once on test pairs
  python results/experiments.py split "$@"
  hh=runs/human-$(basename "$1") hs=runs/human-$(basename "$2")
  candidate() {  # bfloat16: half the time on a CPU that has it
    model "human-$1" 0 --level 1 --pairs 20000 --precision bf16 --rm_micro 2 "${@:2}"
  }
  candidate hh --data "$hh" --max_len 320 --rm_lr 2e-5
  candidate hh-lr-1e-5 --data "$hh" --max_len 320 --rm_lr 1e-5
  candidate hh-lr-5e-5 --data "$hh" --max_len 320 --rm_lr 5e-5
  candidate hh-epochs-2 --data "$hh" --max_len 320 --rm_lr 2e-5 --epochs 2
  candidate both --data "$hh" "$hs" --max_len 512 --rm_lr 2e-5
  candidate hs --data "$hs" --max_len 768 --rm_lr 2e-5
  for c in hh hh-lr-1e-5 hh-lr-5e-5 hh-epochs-2 both hs; do
    python results/experiments.py judge human-validation runs/human-$c-s0 "$hh" "$hs"
  done
}
human_test() {  # human_test CANDIDATE HH HELPSTEER: once, after the choice
  python results/experiments.py judge human-test "runs/human-$1-s0" "runs/test-$(basename "$2")" "runs/test-$(basename "$3")"
}

if [ "${1:-}" = human ] || [ "${1:-}" = human_test ]; then
  "$1" "${@:2}"
else
  for part in ${@:-main readouts models ablations shuffled onpolicy read_samples cool extra judge blind}; do $part; done
fi
