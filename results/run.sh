#!/usr/bin/env bash
# What stands behind REPORT.md, in order; on two CPU cores: days. Samples and runs go on where they were stopped; results are
# appended to runs.jsonl, so a command that is repeated needs its old lines taken out.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1   # the packaged SFT model and the bundled pairs, as in the report

data() {      # prompts are in data/; sheets are read by readers between `sheets` and `collect`
  python results/experiments.py samples
  python results/experiments.py sheets A train
  python results/experiments.py sheets A held-out
  python results/experiments.py sheets B held-out
  python results/experiments.py collect
  python results/experiments.py bundle
  python results/experiments.py sheets A later    # then `collect`: prompts that are in no bundle
}

rewards() {
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
  python results/experiments.py cooled 0.4 first runs/cooled.json l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2
  for reader in A B; do
    for policy in l1 l2; do
      python results/experiments.py duels runs/eval.json $reader sft $policy
      python results/experiments.py duels runs/cooled.json $reader "sft at 0.4" "$policy at 0.4"
    done
    python results/experiments.py aligned_sheets runs/demo_pairs-level1 $reader
  done
}

penalty() {   # the same without the penalty for an answer that does not end
  for level in 1 2; do
    python reinforce.py --level $level --eos_penalty 0 --rm runs/demo_pairs-reward$level --out runs/level$level-no-penalty
    python results/experiments.py record "level $level, no penalty" runs/level$level-no-penalty
  done
  python results/experiments.py cooled 0.7 first runs/penalty.json \
    "l1, no penalty=runs/level1-no-penalty" "l2, no penalty=runs/level2-no-penalty"
}

controls() {  # what needs no REINFORCE, and a policy of coin labels
  python results/noise.py pool 16
  python results/experiments.py untrained_arms runs/demo_pairs-reward1 runs/untrained.json
  for level in 1 2; do
    python results/noise.py frontier $level runs/demo_pairs-reward$level runs/demo_pairs-level$level
  done
  python results/experiments.py control_head coin runs/demo_pairs-reward1 runs/coin-reward1
  python reinforce.py --level 1 --rm runs/coin-reward1 --out runs/level1-coin
  python results/experiments.py record "level 1, coin labels" runs/level1-coin
  python results/experiments.py cooled 0.7 first runs/coin.json "l1, coin labels=runs/level1-coin"
  for reader in A B; do
    for arm in "best of 4" "best of 16" "one short sentence"; do
      python results/experiments.py duels runs/untrained.json $reader sft "$arm"
    done
    for policy in penalty:"l1, no penalty" penalty:"l2, no penalty" coin:"l1, coin labels"; do
      python results/experiments.py duels runs/${policy%%:*}.json $reader "sft at 0.7" "${policy#*:} at 0.7"
    done
  done
}

wide() {      # the other 164 held-out prompts
  python results/experiments.py cooled 0.7 others runs/wide.json l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2 \
    "l1, no penalty=runs/level1-no-penalty" "l2, no penalty=runs/level2-no-penalty" "l1, coin labels=runs/level1-coin"
  for reader in A B; do
    for policy in l1 l2 "l1, no penalty" "l2, no penalty" "l1, coin labels"; do
      python results/experiments.py duels runs/wide.json $reader "sft at 0.7" "$policy at 0.7"
    done
  done
}

keep() {      # hard links of a run's checkpoints, every ten steps
  while sleep 20; do
    n=$(cat $1/metrics.jsonl 2> /dev/null | wc -l)
    if [ $n -gt 0 ] && [ $((n % 10)) = 0 ] && [ ! -f $1-$n.pt ]; then sleep 15; ln $1/checkpoint.pt $1-$n.pt; fi
  done
}

long() {      # 3,200 sampled answers; and everything at other temperatures
  for level in 1 2; do
    keep runs/level$level-long &
    python reinforce.py --level $level --eos_penalty 0 --steps 100 --batch 32 --seed 1 --save_every 5 \
      --rm runs/demo_pairs-reward$level --out runs/level$level-long
    kill %%
    python results/experiments.py record "level $level, no penalty, 3,200 answers" runs/level$level-long
    python results/experiments.py checkpoints "level $level, no penalty, 3,200 answers" runs/demo_pairs-reward$level 1 \
      runs/level$level-long-{10,20,30,40,50,60,80,100}.pt
    python results/experiments.py doubled "level $level, no penalty, 3,200 answers" runs/demo_pairs-reward$level 1 \
      runs/level$level-doubled runs/level$level-long-{50,60,70,80,90,100}.pt
  done
  policies=("l1, no penalty, 3,200 answers=runs/level1-long" "l2, no penalty, 3,200 answers=runs/level2-long")
  python results/experiments.py cooled 0.7 all runs/long.json "${policies[@]}"
  python results/experiments.py cooled 0.4 all runs/long.json "${policies[@]}" "l1, coin labels=runs/level1-coin" \
    "l1, doubled=runs/level1-doubled" "l2, doubled=runs/level2-doubled"
  python results/experiments.py cooled 0.2 all runs/long.json
  python results/experiments.py cooled 0.4 others runs/wide04.json l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2
  for reader in A B; do
    python results/experiments.py duels runs/long.json $reader "sft at 0.7" "sft at 0.4"
    python results/experiments.py duels runs/long.json $reader "sft at 0.4" "sft at 0.2"
    python results/experiments.py duels runs/long.json $reader "sft at 0.4" "l1, coin labels at 0.4"
    for level in 1 2; do
      for t in 0.7 0.4; do
        python results/experiments.py duels runs/long.json $reader "sft at $t" "l$level, no penalty, 3,200 answers at $t"
      done
      python results/experiments.py duels runs/long.json $reader "sft at 0.4" "l$level, doubled at 0.4"
      python results/experiments.py duels runs/wide04.json $reader "sft at 0.4" "l$level at 0.4"
    done
  done
}

long_seeds() {    # two more seeds of the long runs, read at 0.4
  policies=()
  for level in 1 2; do
    for seed in 2 3; do
      name="no penalty, 3,200 answers, seed $seed"
      out=runs/level$level-long-seed$seed
      python reinforce.py --level $level --eos_penalty 0 --steps 100 --batch 32 --seed $seed --save_every 5 \
        --rm runs/demo_pairs-reward$level --out $out
      python results/experiments.py record "level $level, $name" $out
      policies+=("l$level, $name=$out")
    done
  done
  python results/experiments.py cooled 0.4 all runs/long-seeds.json "${policies[@]}"
  for reader in A B; do
    for policy in "${policies[@]}"; do
      python results/experiments.py duels runs/long-seeds.json $reader "sft at 0.4" "${policy%%=*} at 0.4"
    done
  done
}

temperatures() {  # level 1 without the penalty, trained at other temperatures, all read at 0.4
  for t in 0.4 1.0; do
    python reinforce.py --level 1 --eos_penalty 0 --temperature $t --rm runs/demo_pairs-reward1 --out runs/level1-t$t
    python results/experiments.py record "level 1, no penalty, trained at $t" runs/level1-t$t
  done
  policies=("l1, no penalty" "l1, no penalty, trained at 0.4" "l1, no penalty, trained at 1.0")
  python results/experiments.py cooled 0.4 all runs/trained.json "${policies[0]}=runs/level1-no-penalty" \
    "${policies[1]}=runs/level1-t0.4" "${policies[2]}=runs/level1-t1.0"
  for reader in A B; do
    for policy in "${policies[@]}"; do
      python results/experiments.py duels runs/trained.json $reader "sft at 0.4" "$policy at 0.4"
    done
  done
}

seeds() {     # two more seeds of both levels without the penalty, and coin labels, all read at 0.4
  policies=()
  for level in 1 2; do
    for seed in 2 3; do
      out=runs/level$level-no-penalty-seed$seed
      python reinforce.py --level $level --eos_penalty 0 --seed $seed --rm runs/demo_pairs-reward$level --out $out
      python results/experiments.py record "level $level, no penalty, seed $seed" $out
      policies+=("l$level, no penalty, seed $seed=$out")
    done
  done
  python reinforce.py --level 1 --eos_penalty 0 --rm runs/coin-reward1 --out runs/level1-coin-no-penalty
  python results/experiments.py record "level 1, coin labels, no penalty" runs/level1-coin-no-penalty
  policies+=("l1, coin labels, no penalty=runs/level1-coin-no-penalty" "l2, no penalty=runs/level2-no-penalty")
  python results/experiments.py cooled 0.4 all runs/trained.json "${policies[@]}"
  for reader in A B; do
    for policy in "${policies[@]}"; do
      python results/experiments.py duels runs/trained.json $reader "sft at 0.4" "${policy%%=*} at 0.4"
    done
  done
}

readouts() {  # level 2 by readout, without the penalty
  runs=()
  for readout in mean variance entropy win; do
    out=runs/level2-readout-$readout
    python reinforce.py --level 2 --eos_penalty 0 --readout $readout --seed 4 --rm runs/demo_pairs-reward2 --out $out
    runs+=("$readout=$out")
  done
  python results/experiments.py readouts "level 2, no penalty, 640 answers, seed 4" runs/demo_pairs-reward2 4 "${runs[@]}"
}

drawn() {     # a run whose rewards are drawn
  python results/experiments.py pure_noise 1 runs/demo_pairs-reward1 runs/level1-noise
}

human() {     # human pairs: `human NAME FILE` for each file of preference pairs
  for level in 1 2; do
    python reward.py --level $level --data $2 --max_len 1024 --rm runs/human-$1-reward$level
    python results/experiments.py validated $1 runs/human-$1-reward$level
  done
}

human_policy() {  # of `human hh_helpful FILE`
  python reinforce.py --level 1 --eos_penalty 0 --rm runs/human-hh_helpful-reward1 --out runs/level1-human
  python results/experiments.py record "level 1, human pairs, no penalty" runs/level1-human
  python results/experiments.py cooled 0.4 all runs/trained.json "l1, human pairs=runs/level1-human"
  for reader in A B; do
    python results/experiments.py duels runs/trained.json $reader "sft at 0.4" "l1, human pairs at 0.4"
  done
}

gradients() { # products of single answers' gradients, at both ends of the runs of `penalty`
  for level in 1 2; do
    for at in start end; do
      python results/experiments.py variance "level $level, no penalty" runs/level$level-no-penalty runs/demo_pairs-reward$level $at
    done
  done
}

trunks() {    # the trained trunk on written pairs, five seeds; then beside a ranked pair a prompt. The frozen one is in `rewards`
  for level in 1 2; do
    for seed in 0 1 2 3 4; do
      folder=runs/written-trained$level-$seed
      python reward.py --level $level --data data/demo_pairs.jsonl --trunk trained --rm_seed $seed --rm $folder
      python results/experiments.py held_out "written pairs" $folder
    done
  done
  python results/experiments.py one_pair runs/one_pair.jsonl
  python reward.py --level 1 --data data/demo_pairs.jsonl runs/one_pair.jsonl --trunk trained --rm runs/both-trained1-0
  python results/experiments.py held_out "both, one pair a prompt" runs/both-trained1-0
}

kinds() {     # policies against reward models of one kind of pairs, or with a trained trunk, read at 0.4
  for kind in written samples; do
    python results/experiments.py control_head $kind runs/demo_pairs-reward1 runs/$kind-reward1
  done
  for rm in written-reward1 samples-reward1 both-trained1-0; do
    python reinforce.py --level 1 --eos_penalty 0 --rm runs/$rm --out runs/level1-$rm
  done
  python results/experiments.py record "level 1, written pairs alone, no penalty" runs/level1-written-reward1
  python results/experiments.py record "level 1, samples alone, no penalty" runs/level1-samples-reward1
  python results/experiments.py record "level 1, trained trunk, no penalty" runs/level1-both-trained1-0
  policies=("l1, written pairs alone=runs/level1-written-reward1" "l1, samples alone=runs/level1-samples-reward1"
    "l1, trained trunk=runs/level1-both-trained1-0")
  python results/experiments.py cooled 0.4 all runs/trained.json "${policies[@]}"
  for reader in A B; do
    for policy in "${policies[@]}"; do
      python results/experiments.py duels runs/trained.json $reader "sft at 0.4" "${policy%%=*} at 0.4"
    done
  done
}

world() { python results/noise.py world 3; }   # needs the pool of `controls`

read_back() { # once the sheets are read
  python results/experiments.py collect
  for level in 1 2; do
    python results/experiments.py aligned "level $level" runs/demo_pairs-reward$level demo_pairs-level1
  done
}

"$@"
python results/tables.py
