"""Times this project against Hugging Face generate() and TRL, side by side in one run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/bench.py                # all of it: about 45 minutes on two CPU cores
    python benchmarks/bench.py step --repeats 5

Each contestant lives in a process of its own, so that its peak memory is its own, and does one unit
of work when it is asked to; the contestants of a task take turns, so that a slow minute of the
machine hits both. Same model (float32 weights), prompts, lengths, batch and micro-batch.

    sample   answers of --max_new tokens (eos is not a stop here: all have equal length)
    step     one REINFORCE step: sample, score, KL, gradient, update; TRL: RLOOTrainer
    reward   one epoch of a reward model over --pairs real pairs as they come; TRL: RewardTrainer
"""
import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings("ignore")

from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification,  # noqa: E402
                          AutoTokenizer, TrainerCallback)

import reinforce  # noqa: E402
import reward  # noqa: E402

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
        sft, num_labels=1, pad_token_id=reward.PAD_ID, dtype=torch.float32).to(cfg.device).eval()


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
    """Of one forward and backward pass: 6 a weight and token; attention itself is not counted."""
    trunk = sum(p.numel() for layer in model.base_model.layers for p in layer.parameters())
    head = model.get_output_embeddings().weight.numel() if head_tokens else 0
    return 6 * (trunk * tokens + head * head_tokens)


# ----- contestants: each calls done(tokens) after every unit of work, without end -----

def ours_sample(args, done):
    reward.keep_freed_memory()
    cfg, tokenizer, sft, pairs = load(args)
    policy = causal(cfg, sft)
    x = short_prompts(cfg, tokenizer, pairs, cfg.batch)
    x = [reward.encode_prompt(tokenizer, p.messages) for p in x]
    for step in range(10**6):
        drawn = reinforce.uniforms(0, step, range(len(x)), cfg.max_new)
        answers = reinforce.sample(reinforce.sampling_copy(policy), x, drawn, NO_EOS)
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
                              pad_token_id=reward.PAD_ID)
        done(out[:, batch["input_ids"].shape[1]:].numel())


def ours_step(args, done):
    reward.keep_freed_memory()
    cfg, tokenizer, sft, pairs = load(args)
    policy, reference, rm = causal(cfg, sft), causal(cfg, sft), scorer(cfg, sft)
    reward.frozen(reference), reward.frozen(rm)
    kept = short_prompts(cfg, tokenizer, pairs, 256)
    x = [reward.encode_prompt(tokenizer, p.messages) for p in kept]
    train, training = reinforce.policy_gradient, {}

    def watched(policy, prompts, answers, *rest):
        began = time.perf_counter()
        result = train(policy, prompts, answers, *rest)
        new = sum(map(len, answers))
        training["seconds"] = time.perf_counter() - began
        training["flops"] = training_flops(policy, sum(map(len, prompts)) + new, new)
        return result

    reinforce.policy_gradient = watched
    reinforce.train_policy(
        policy, reference, rm, x, range(len(x)), cfg, 1.0, (0.0, torch.ones(1)),
        tokenizer.eos_token_id, lambda m: done(m["length"] * cfg.batch, **training))


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
    tokens = sum(len(w) + len(l) for w, l, _ in encoded)
    once = tokens - sum(reward.shared(w, l) for w, l, _ in encoded)
    while True:
        model = scorer(cfg, sft)
        began = time.perf_counter()
        reward.train_reward_model(model, encoded, cfg)
        done(tokens, training_flops(model, once, 0), time.perf_counter() - began)


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
    tokenizer.pad_token_id = reward.PAD_ID
    return tokenizer


class OnStep(TrainerCallback):
    """Calls done() after every `every` optimizer steps."""
    def __init__(self, done, every):
        self.done, self.every = done, every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.done(None)


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
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        result = {"seconds": time.perf_counter() - began, "memory_gib": memory, "tokens": tokens,
                  "share": flops / seconds / 1e9 / limit}
        print(json.dumps(result), file=answer, flush=True)
        wait()

    def wait():
        nonlocal began, limit
        if not sys.stdin.readline():
            os._exit(0)
        limit = matmul_speed(args.device)  # again for each unit: the machine has slow minutes
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
    parser.add_argument("task", nargs="?", choices=("sample", "step", "reward"))
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
    pairs = {"sample": ("ours_sample", "generate_sample"), "step": ("ours_step", "trl_step"),
             "reward": ("ours_reward", "trl_reward")}
    for task in [args.task] if args.task else pairs:
        result = race(pairs[task], args, sys.argv[1:])
        ours, theirs = (result[n] for n in pairs[task])
        print(task, json.dumps(result))
        print(f"{task}: {ours['seconds']:.2f} s against {theirs['seconds']:.2f} s: ratio "
              f"{theirs['seconds'] / ours['seconds']:.2f}; memory {ours['memory_gib']:.2f} against "
              f"{theirs['memory_gib']:.2f} GiB" + (
                  f"; training at {ours['share']:.0%} of the matrix-product limit"
                  if ours["share"] else ""))


if __name__ == "__main__":
    main()
