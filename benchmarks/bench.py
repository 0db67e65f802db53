"""Times this project against Hugging Face generate() and TRL, side by side in one run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/bench.py step --repeats 5

Each contestant lives in a process of its own, so that its peak memory is its own (of the unit, not
of loading), and does one unit of work when it is asked to; the contestants of a task take turns, so
that a slow minute of the machine hits both. Same model (float32 weights), prompts, lengths, batch
and micro-batch.

    sample   answers of --max_new tokens (eos is not a stop here: all have equal length)
    step     one REINFORCE step: sample, score, KL, gradient, update; TRL: RLOOTrainer
    reward   one epoch of a reward model over --pairs real pairs as they come; TRL: RewardTrainer

and, of this project alone:

    parts      where a step's time goes, and how it grows with batch, answer length and model size
    precision  what bfloat16 would change in the scores and reference log-probs of the models that
               `reinforce.py --level 1` and `--level 2` have left in runs/
"""
import argparse
import contextlib
import copy
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings("ignore")

from transformers import (AutoConfig, AutoModelForCausalLM,  # noqa: E402
                          AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback)

import reinforce  # noqa: E402
import reward  # noqa: E402

PAD = 0      # <|endoftext|>
NO_EOS = -1  # no token has this id: every answer runs to max_new


def settings(args, **more):
    size = dict(batch=args.batch, max_new=args.max_new, max_prompt=args.max_prompt, steps=10**6,
                micro_batch=args.micro_batch, rm_micro=args.rm_micro, pairs=args.pairs)
    size |= {"data": (args.data,)} if args.data else {}
    return reinforce.ReinforceConfig(level=1, device=args.device, **size, **more)


def load(args):
    """(config, tokenizer, folder of the SFT model, training pairs)"""
    cfg = settings(args)
    with contextlib.redirect_stdout(sys.stderr):
        train, _, _ = reward.load_pairs(cfg)
        sft, _ = reward.find_sft(cfg)
    return cfg, AutoTokenizer.from_pretrained(sft), sft, train


def short_prompts(cfg, tokenizer, pairs, count):
    """`count` prompts of at most max_prompt tokens, as pairs; repeated where there are fewer."""
    unique = {p.key: p for p in pairs
              if len(reward.encode_prompt(tokenizer, p.messages)) <= cfg.max_prompt}
    kept = list(unique.values())
    return [kept[i % len(kept)] for i in range(count)]


def causal(cfg, sft):
    return AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).to(cfg.device).eval()


def scorer(cfg, sft):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        sft, num_labels=1, pad_token_id=PAD, dtype=torch.float32).to(cfg.device).eval()


def matmul_speed(device):
    """GFLOP/s of one large float32 matrix product: the limit that training is held against."""
    n = 8192 if device.startswith("cuda") else 2048
    a, b = torch.randn(2, n, n, device=device)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times) / 1e9


def training_flops(model, tokens, head_tokens):
    """Of one forward and backward pass: 6 a weight and token (a third of it forward); attention
    itself is not counted."""
    size = model.config
    heads = size.head_dim * (size.num_attention_heads + size.num_key_value_heads)
    layer = size.hidden_size * (2 * heads + 3 * size.intermediate_size)
    return 6 * (size.num_hidden_layers * layer * tokens
                + size.vocab_size * size.hidden_size * head_tokens)


def count_tokens(tokens=[0]):
    """Lets reward.py add up the tokens that go through a model (a shared beginning once)."""
    lay_out = reward.lay_out

    def counting(texts, device):
        inputs, where = lay_out(texts, device)
        tokens[0] += inputs["input_ids"].numel()
        return inputs, where

    reward.lay_out = counting
    return tokens


# ----- contestants: each calls done(tokens) after every unit of work, without end -----

def ours_sample(args, done):
    reward.keep_freed_memory()
    cfg, tokenizer, sft, pairs = load(args)
    policy = reward.frozen(causal(cfg, sft))  # nothing is trained here: packed once, no second copy
    x = short_prompts(cfg, tokenizer, pairs, cfg.batch)
    x = [reward.encode_prompt(tokenizer, p.messages) for p in x]
    for step in range(10**6):
        drawn = reinforce.uniforms(0, step, range(len(x)), cfg.max_new)
        answers = reinforce.sample(policy, x, drawn, NO_EOS)
        done(sum(map(len, answers)))


def generate_sample(args, done):
    cfg, tokenizer, sft, pairs = load(args)
    policy = causal(cfg, sft)
    x = short_prompts(cfg, tokenizer, pairs, cfg.batch)
    x = [reward.encode_prompt(tokenizer, p.messages) for p in x]
    tokenizer.padding_side = "left"
    batch = tokenizer.pad({"input_ids": x}, return_tensors="pt").to(cfg.device)
    while True:
        out = policy.generate(**batch, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                              min_new_tokens=cfg.max_new, max_new_tokens=cfg.max_new,
                              pad_token_id=PAD)
        done(out[:, batch["input_ids"].shape[1]:].numel())


def run_loop(policy, reference, rm, x, cfg, eos_id, log):
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)
    reinforce.train_policy(policy, optimizer, reference, rm, x, range(len(x)), cfg, eos_id,
                           reinforce.fresh_state(cfg, 1.0, 0.0, [1.0]), log)


def ours_step(args, done):
    reward.keep_freed_memory()
    cfg, tokenizer, sft, pairs = load(args)
    policy, reference, rm = causal(cfg, sft), causal(cfg, sft), scorer(cfg, sft)
    reward.frozen(reference), reward.frozen(rm)
    kept = short_prompts(cfg, tokenizer, pairs, 256)
    x = [reward.encode_prompt(tokenizer, p.messages) for p in kept]
    train, training, tokens = reinforce.policy_gradient, {}, count_tokens()

    def watched(policy, prompts, answers, *rest):
        tokens[0], began = 0, time.perf_counter()
        result = train(policy, prompts, answers, *rest)
        training["seconds"] = time.perf_counter() - began
        training["flops"] = training_flops(policy, tokens[0], sum(map(len, answers)))
        return result

    reinforce.policy_gradient = watched
    run_loop(policy, reference, rm, x, cfg, tokenizer.eos_token_id,
             lambda m: done(m["length"] * cfg.batch, **training))


def trl_step(args, done):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer
    cfg, tokenizer, sft, pairs = load(args)
    kept = short_prompts(cfg, tokenizer, pairs, 256)
    rows = Dataset.from_list([{"prompt": list(p.messages)} for p in kept])
    micro = min(args.micro_batch, cfg.batch)
    config = RLOOConfig(
        output_dir=args.scratch, per_device_train_batch_size=micro, num_generations=2,
        gradient_accumulation_steps=cfg.batch // micro, max_completion_length=cfg.max_new,
        beta=0.05, learning_rate=1e-6, bf16=args.trl_bf16, gradient_checkpointing=False,
        logging_steps=10**6, use_cpu=cfg.device == "cpu", **QUIET)
    RLOOTrainer(model=causal(cfg, sft), reward_funcs=scorer(cfg, sft), args=config,
                train_dataset=rows, processing_class=tokenizer,
                reward_processing_classes=pad_apart(sft), callbacks=[OnStep(done, 1)]).train()


def ours_reward(args, done):
    reward.keep_freed_memory()
    cfg, tokenizer, sft, pairs = load(args)
    with contextlib.redirect_stdout(sys.stderr):
        encoded = reward.encode_pairs(tokenizer, pairs[:args.pairs], cfg, "benchmark")
    tokens = count_tokens()
    while True:
        model, tokens[0] = scorer(cfg, sft), 0
        began = time.perf_counter()
        reward.train_reward_model(model, encoded, cfg)
        seconds = time.perf_counter() - began
        done(sum(len(w) + len(l) for w, l, _ in encoded), training_flops(model, tokens[0], 0),
             seconds)


def trl_reward(args, done):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer
    cfg, tokenizer, sft, pairs = load(args)
    def say(text):
        return [{"role": "assistant", "content": text}]
    rows = Dataset.from_list([{"prompt": list(p.messages), "chosen": say(p.chosen),
                               "rejected": say(p.rejected)} for p in pairs[:args.pairs]])
    micro = min(cfg.rm_micro, cfg.rm_batch)
    steps = -(-len(rows) // cfg.rm_batch)
    config = RewardConfig(
        output_dir=args.scratch, per_device_train_batch_size=micro, max_length=cfg.max_len,
        gradient_accumulation_steps=cfg.rm_batch // micro, learning_rate=cfg.rm_lr,
        bf16=args.trl_bf16, gradient_checkpointing=False, num_train_epochs=10**4,
        logging_steps=10**6, use_cpu=cfg.device == "cpu", **QUIET)
    RewardTrainer(model=scorer(cfg, sft), args=config, train_dataset=rows,
                  processing_class=pad_apart(sft), callbacks=[OnStep(done, steps)]).train()


QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True,
         "dataloader_pin_memory": False}


def pad_apart(sft):
    """The tokenizer with a pad token of its own, as TRL's trainers want it."""
    tokenizer = AutoTokenizer.from_pretrained(sft)
    tokenizer.pad_token_id = PAD
    return tokenizer


class OnStep(TrainerCallback):
    """Calls done() after every `every` optimizer steps."""
    def __init__(self, done, every):
        self.done, self.every = done, every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.done(None)


# ----- this project alone -----

GRID = [("135M", 8, 64), ("135M", 16, 64), ("135M", 32, 64), ("135M", 64, 64), ("135M", 16, 32),
        ("135M", 16, 128), ("360M", 16, 64)]  # model, batch, tokens of an answer
WIDER = dict(hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
             num_key_value_heads=5)           # the shape of SmolLM2-360M, with random weights


def step_models(cfg, sft, size):
    if size == "135M":
        return causal(cfg, sft), causal(cfg, sft), scorer(cfg, sft)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(sft, **WIDER)
    policy = AutoModelForCausalLM.from_config(config).to(cfg.device).eval()
    config.num_labels, config.pad_token_id = 1, PAD
    return policy, copy.deepcopy(policy), (
        AutoModelForSequenceClassification.from_config(config).to(cfg.device).eval())


def parts(args):
    """A row for each setting of GRID: seconds by part, and what the matrix products alone need."""
    reward.keep_freed_memory()
    tokens, times, flops = count_tokens(), {}, {}

    def timed(name, head, passes):
        part = getattr(reinforce, name)

        def run(model, *rest):
            tokens[0], began = 0, time.perf_counter()
            result = part(model, *rest)
            times.setdefault(name, []).append(time.perf_counter() - began)
            new, more = args.batch * args.max_new, args.batch * (args.max_new - 1)
            trunk = tokens[0] + more * (name == "sample")
            flops[name] = training_flops(model, trunk, new * head) * passes / 3
            return result
        setattr(reinforce, name, run)

    names = {"sample": (1, 1), "score_all": (0, 1), "sequence_logprobs": (1, 1),
             "policy_gradient": (1, 3)}
    for name, (head, passes) in names.items():
        timed(name, head, passes)
    reinforce.lay_out = lambda *x: reward.lay_out(*x)  # the counting one
    print("| model | batch | answer | sample | score | reference | gradient | rest | step, s |"
          " products alone, s: sample | score | reference | gradient | all | share |")
    print("|" + "---|" * 15)
    for size, args.batch, args.max_new in GRID:
        times.clear()
        cfg, tokenizer, sft, pairs = load(args)
        policy, reference, rm = step_models(cfg, sft, size)
        reward.frozen(reference), reward.frozen(rm)
        x = [reward.encode_prompt(tokenizer, p.messages)
             for p in short_prompts(cfg, tokenizer, pairs, 256)]
        steps = args.repeats + 1
        ends, limits = [time.perf_counter()], []

        def log(_):
            ends.append(time.perf_counter())
            limits.append(matmul_speed(args.device))
            ends[-1:] = [ends[-1], time.perf_counter()]

        run_loop(policy, reference, rm, x, dataclasses.replace(cfg, steps=steps), NO_EOS,
                 log)
        whole = statistics.median(ends[i + 1] - ends[i] for i in range(2, 2 * steps, 2))
        spent = [statistics.median(times[n][1:]) for n in names]
        least = [flops[n] / 1e9 / statistics.median(limits) for n in names]
        print(f"| {size} | {args.batch} | {args.max_new} | "
              + " | ".join(f"{v:.2f}" for v in (*spent, whole - sum(spent), whole, *least,
                                                sum(least)))
              + f" | {sum(least) / whole:.0%} |", flush=True)


def precision(args):
    """Scores of SFT answers and their reference log-probs in bfloat16 against float32."""
    args.max_new, args.max_prompt = 48, 128
    cfg, tokenizer, sft, _ = load(args)
    with contextlib.redirect_stdout(sys.stderr):
        _, val, _ = reward.load_pairs(cfg)
        x, keys = reinforce.usable_prompts(tokenizer, val, cfg, "prompts")
    policy = causal(cfg, sft)
    y = reinforce.answer_all(policy, x, keys, 0, 0, cfg, tokenizer.eos_token_id, None)
    texts = [p + a for p, a in zip(x, y)]

    def tell(what, exact, rough):
        error = rough - exact
        print(f"{what}: {len(x)} answers, spread {exact.std():.3f}; bfloat16 off by rms "
              f"{error.pow(2).mean().sqrt():.3f}, mean {error.mean():+.3f}, at most "
              f"{error.abs().max():.3f}")

    for level in (1, 2):
        folder = f"runs/demo_pairs-reward{level}"
        exact, rough = (reinforce.read_scores(
            reward.score_all(reward.load_reward_model(folder, level, c), texts, c), "mean", 0, None)
            for c in (cfg, dataclasses.replace(cfg, precision="bf16")))
        tell(f"score of {folder}", exact, rough)
    exact, rough = (reinforce.sequence_logprobs(m, x, y, 8)
                    for m in (policy, causal(cfg, sft).bfloat16()))
    tell("log pi_ref(y|x)", exact, rough)


# ----- the race -----

def worker(args):
    """Does a unit of work for each line on stdin; answers with its time and memory as JSON."""
    answer, sys.stdout = sys.stdout, sys.stderr
    began = limit = None

    def done(tokens, flops=0, seconds=1):
        if args.device == "cuda":
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated() / 2**30
        else:
            status = Path("/proc/self/status").read_text()
            memory = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20
        result = {"seconds": time.perf_counter() - began, "memory_gib": memory, "tokens": tokens,
                  "share": flops / seconds / 1e9 / limit}
        print(json.dumps(result), file=answer, flush=True)
        wait()

    def wait():
        nonlocal began, limit
        if not sys.stdin.readline():
            os._exit(0)
        limit = matmul_speed(args.device)  # again for each unit: the machine has slow minutes
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:  # Linux: the peak of resident memory starts again, loading does not count
            Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()

    wait()
    globals()[args.worker](args, done)


def race(names, args, extra):
    """`repeats` interleaved units of each contestant, after one that is not counted."""
    command = [sys.executable, __file__, *extra]
    log = open(Path(args.scratch) / "bench.log", "a")
    players = {n: subprocess.Popen([*command, "--worker", n], stdin=subprocess.PIPE, text=True,
                                   stdout=subprocess.PIPE, stderr=log) for n in names}
    units = {n: [] for n in names}
    for _ in range(args.repeats + 1):
        for name, player in players.items():
            player.stdin.write("go\n")
            player.stdin.flush()
            line = player.stdout.readline()
            if not line:
                raise SystemExit(f"{name} died; see {log.name}")
            units[name].append(json.loads(line))
    for player in players.values():
        player.stdin.close()
        player.wait()
    return {n: {"seconds": statistics.median(u["seconds"] for u in units[n][1:]),
                "all": [round(u["seconds"], 2) for u in units[n][1:]],
                "share": statistics.median(u["share"] for u in units[n][1:]),
                "tokens": units[n][-1]["tokens"], "memory_gib": units[n][-1]["memory_gib"]}
            for n in names}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("sample", "step", "reward", "parts",
                                                    "precision"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro_batch", type=int, default=8)
    parser.add_argument("--rm_micro", type=int, default=4)
    parser.add_argument("--max_new", type=int, default=64)
    parser.add_argument("--max_prompt", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trl_bf16", action="store_true", help="TRL's default; ours stays float32")
    parser.add_argument("--scratch", default="/tmp/bench")
    args = parser.parse_args()
    Path(args.scratch).mkdir(parents=True, exist_ok=True)
    if args.worker:
        return worker(args)
    if args.task in ("parts", "precision"):
        return globals()[args.task](args)
    pairs = {"sample": ("ours_sample", "generate_sample"), "step": ("ours_step", "trl_step"),
             "reward": ("ours_reward", "trl_reward")}
    result = race(pairs[args.task], args, sys.argv[1:])
    ours, theirs = (result[n] for n in pairs[args.task])
    print(args.task, json.dumps(result))
    print(f"{args.task}: {ours['seconds']:.2f} s against {theirs['seconds']:.2f} s: ratio "
          f"{theirs['seconds'] / ours['seconds']:.2f}; memory {ours['memory_gib']:.2f} against "
          f"{theirs['memory_gib']:.2f} GiB" + (
              f"; training at {ours['share']:.0%} of the matrix-product limit"
              if ours["share"] else ""))


if __name__ == "__main__":
    main()
