#!/usr/bin/env bash
# What stands behind REPORT.md, in order; on two CPU cores: days. Samples and runs go on where they were stopped; results are
# appended to runs.jsonl, so a command that is repeated needs its old lines taken out. For the report 64 of the held-out prompts
# were read first, for the policies of main, penalty and controls; here all are answered at once.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1   # the packaged SFT model and the bundled pairs, as in the report
RM=runs/demo_pairs-reward # and the level: the reward models that `main` makes

x() { python results/experiments.py "$@"; }

policy() {    # NAME OUT SETTINGS...: a run of reinforce.py as a line of runs.jsonl
  python reinforce.py --out $2 "${@:3}"
  x record "$1" $2
}

read_at() {   # TEMPERATURE NAME=RUN...: answers, and sheets against the SFT model, which are read before `collect`
  local policies=("${@:2}")
  x cooled $1 runs/answers.json "${policies[@]}"
  x duel_sheets runs/answers.json "sft at $1" "${policies[@]/%=*/ at $1}"
}

data() {      # prompts are in data/; sheets are read by readers between `sheets` and `collect`
  x samples
  x sheets train
  x sheets held-out
  x collect
  x bundle
  x sheets later    # then `collect`: prompts that are in no bundle
}

rewards() {
  x heads 1
  x heads 2
}

main() {      # the README's command, both levels; then sheets of the policies against the SFT model
  for level in 1 2; do
    policy "level $level" runs/demo_pairs-level$level --level $level
  done
  for t in 0.7 0.4 0.2; do
    x cooled $t runs/answers.json sft
  done
  x duel_sheets runs/answers.json "sft at 0.7" "sft at 0.4"
  x duel_sheets runs/answers.json "sft at 0.4" "sft at 0.2"
  for t in 0.7 0.4; do
    read_at $t l1=runs/demo_pairs-level1 l2=runs/demo_pairs-level2
  done
  x aligned_sheets runs/demo_pairs-level1
}

penalty() {   # without the penalty for an answer that does not end; also what later runs are compared with
  for level in 1 2; do
    policy "level $level, no penalty" runs/level$level-no-penalty --level $level --eos_penalty 0 --rm $RM$level
  done
  for t in 0.7 0.4; do
    read_at $t "l1, no penalty=runs/level1-no-penalty" "l2, no penalty=runs/level2-no-penalty"
  done
}

controls() {  # what needs no REINFORCE, and policies of coin labels
  for t in 0.7 0.4; do
    python results/noise.py pool 16 $t
    x untrained_arms ${RM}1 $t runs/untrained.json
  done
  x duel_sheets runs/untrained.json "sft at 0.7" "best of 4 at 0.7" "best of 16 at 0.7" "one short sentence at 0.7"
  x duel_sheets runs/untrained.json "sft at 0.4" "best of 16 at 0.4"
  x by_a_coin runs/coin.jsonl
  for level in 1 2; do
    python results/noise.py frontier $level $RM$level runs/demo_pairs-level$level
    python reward.py --level $level --data runs/coin.jsonl --precision fp32 --rm runs/coin-reward$level
    x held_out "both, samples by a coin" runs/coin-reward$level
  done
  policy "level 1, coin labels" runs/level1-coin --level 1 --rm runs/coin-reward1
  policy "level 1, coin labels, no penalty" runs/level1-coin-no-penalty --level 1 --eos_penalty 0 --rm runs/coin-reward1
  read_at 0.7 "l1, coin labels=runs/level1-coin"
  read_at 0.4 "l1, coin labels=runs/level1-coin" "l1, coin labels, no penalty=runs/level1-coin-no-penalty"
}

keep() {      # hard links of a run's checkpoints, every ten steps
  while sleep 5; do
    n=$(cat $1/metrics.jsonl 2> /dev/null | wc -l) || true
    if [ $n -gt 0 ] && [ $((n % 10)) = 0 ] && [ ! -f $1-$n.pt ]; then sleep 15; ln $1/checkpoint.pt $1-$n.pt; fi
  done
}

long() {      # 3,200 sampled answers, their checkpoints by two judges, and weights twice as far from the SFT model
  for level in 1 2; do
    name="level $level, no penalty, 3,200 answers"
    out=runs/level$level-long
    keep $out &
    policy "$name" $out --level $level --eos_penalty 0 --steps 100 --batch 32 --seed 1 --save_every 5 --rm $RM$level
    kill %%
    x doubled $out-doubled $out-{50,60,70,80,90,100}.pt
    points=()
    for n in 10 20 30 40 50 60 80 100; do
      points+=($n=$out-$n.pt)
    done
    x judged checkpoint "$name" $RM$level 1 96 "${points[@]}" "mean of the last half=$out-doubled/1" "twice as far=$out-doubled/2"
    for t in 0.7 0.4; do
      read_at $t "l$level, no penalty, 3,200 answers=$out"
    done
    read_at 0.4 "l$level, doubled=$out-doubled/2"
  done
}

long_seeds() {    # two more seeds of the long runs, read at 0.4
  for level in 1 2; do
    for seed in 2 3; do
      name="no penalty, 3,200 answers, seed $seed"
      out=runs/level$level-long-seed$seed
      policy "level $level, $name" $out --level $level --eos_penalty 0 --steps 100 --batch 32 --seed $seed --save_every 5 \
        --rm $RM$level
      read_at 0.4 "l$level, $name=$out"
    done
  done
}

temperatures() {  # level 1 without the penalty, trained at other temperatures, all read at 0.4
  for t in 0.4 1.0; do
    policy "level 1, no penalty, trained at $t" runs/level1-t$t --level 1 --eos_penalty 0 --temperature $t --rm ${RM}1
    read_at 0.4 "l1, no penalty, trained at $t=runs/level1-t$t"
  done
}

seeds() {     # two more seeds of both levels without the penalty, read at 0.4
  for level in 1 2; do
    for seed in 2 3; do
      out=runs/level$level-no-penalty-seed$seed
      policy "level $level, no penalty, seed $seed" $out --level $level --eos_penalty 0 --seed $seed --rm $RM$level
      read_at 0.4 "l$level, no penalty, seed $seed=$out"
    done
  done
}

readouts() {  # level 2 by readout, without the penalty; the mean's runs also in their course
  for seed in 4 5 6; do
    points=()
    for readout in mean variance entropy win; do
      out=runs/level2-readout-$readout-$seed
      keep $out &
      python reinforce.py --level 2 --eos_penalty 0 --readout $readout --seed $seed --save_every 5 --rm ${RM}2 --out $out
      kill %%
      points+=($readout=$out)
    done
    for n in 20 30; do
      points+=("mean, update $n=runs/level2-readout-mean-$seed-$n.pt")
    done
    x judged readout "level 2, no penalty, 640 answers, seed $seed" ${RM}2 $seed 228 "${points[@]}"
  done
  for readout in mean win; do
    read_at 0.4 "l2, readout $readout, seed 4=runs/level2-readout-$readout-4"
  done
}

drawn() {     # a run whose rewards are drawn
  x pure_noise 1 ${RM}1 runs/level1-noise
}

human() {     # human pairs: `human NAME FILE` for hh_helpful and for helpsteer2, files of preference pairs
  for level in 1 2; do
    python reward.py --level $level --data $2 --max_len 1024 --rm runs/human-$1-reward$level
    x validated $1 runs/human-$1-reward$level
  done
}

opinions() {  # reward models on the answers that readers compared at 0.4: the bundle's, and one of human pairs
  x opinions 0.4 "l[12], long.*|l1, (human pairs|no penalty|coin labels, no penalty) at 0.4" rankings=${RM}1 HelpSteer2=runs/human-helpsteer2-reward1
}

human_policy() {  # of `human hh_helpful FILE`
  policy "level 1, human pairs, no penalty" runs/level1-human --level 1 --eos_penalty 0 --rm runs/human-hh_helpful-reward1
  read_at 0.4 "l1, human pairs=runs/level1-human"
}

gradients() { # products of single answers' gradients, at both ends of the runs of `penalty`
  for level in 1 2; do
    for at in start end; do
      x variance "level $level, no penalty" runs/level$level-no-penalty $RM$level $at
    done
  done
}

trunks() {    # the trained trunk on written pairs, five seeds; then both trunks beside a ranked pair a prompt
  x one_pair runs/one_pair.jsonl
  for level in 1 2; do
    for seed in 0 1 2 3 4; do
      out=runs/written-trained$level-$seed
      python reward.py --level $level --data data/demo_pairs.jsonl --trunk trained --rm_seed $seed --rm $out
      x held_out "written pairs, trained trunk" $out
    done
    python reward.py --level $level --data data/demo_pairs.jsonl runs/one_pair.jsonl --precision fp32 --rm runs/both-frozen$level
    x held_out "both, one pair a prompt" runs/both-frozen$level
  done
  python reward.py --level 1 --data data/demo_pairs.jsonl runs/one_pair.jsonl --trunk trained --rm runs/both-trained1
  x held_out "both, one pair a prompt, trained trunk" runs/both-trained1
}

kinds() {     # policies against reward models of one kind of pairs, or with the trained trunk of `trunks`, read at 0.4
  python reward.py --level 1 --data data/demo_pairs.jsonl --precision fp32 --rm runs/written-reward1
  python reward.py --level 1 --data data/sample_pairs.jsonl.gz --precision fp32 --rm runs/samples-reward1
  for name in "written pairs alone=written-reward1" "samples alone=samples-reward1" "trained trunk=both-trained1"; do
    rm=${name#*=}
    policy "level 1, ${name%=*}, no penalty" runs/level1-$rm --level 1 --eos_penalty 0 --rm runs/$rm
    read_at 0.4 "l1, ${name%=*}=runs/level1-$rm"
  done
}

world() { python results/noise.py world 3; }   # needs the pool of `controls`

read_back() { # once the sheets are read
  x collect
  for level in 1 2; do
    x aligned "level $level" $RM$level demo_pairs-level1
  done
}

"$@"
python results/tables.py
