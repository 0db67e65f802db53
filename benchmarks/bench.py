"""Times this project against transformers, TRL and its own first edition, side by side in one run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/bench.py sample               # answers; transformers: generate
    python benchmarks/bench.py step --first FOLDER  # one REINFORCE step; TRL: RLOOTrainer
    python benchmarks/bench.py reward --pairs 64    # pairs to reward model; TRL: RewardTrainer
    python benchmarks/bench.py parts                # where a step's time goes; bf16 if it can

Each contestant has a process of its own, so that its peak memory is its own. They take turns, one
unit of work each, so that a slow minute of the machine hits all; the first unit, with the loading,
does not count. SFT model, prompts, lengths, batch, micro-batch and --precision are the same for
all; --help lists more settings. FOLDER is a checkout of the first edition (fp32, on a CPU).
"""
import gc
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from datasets import Dataset

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, os.environ.get("EDITION", ROOT))  # the first edition's process has another

import reinforce  # noqa: E402
import reward  # noqa: E402


class Clock(transformers.TrainerCallback):
    """Measures units of work in a contestant's process, from the word to begin to done()."""

    def __init__(self, pipe, cuda):
        self.pipe = pipe
        self.cuda = cuda
        self.parts = {}
        self.wait()

    def wait(self):
        gc.collect()
        self.pipe.recv()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:  # Linux: the peak of resident memory starts again
            Path("/proc/self/clear_refs").write_text("5")
        self.began = self.now()

    def now(self):
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def done(self, metrics=None):
        """Tells the main process about the unit; returns when it asks for the next one."""
        seconds = self.now() - self.began
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        peak = torch.cuda.max_memory_allocated() if self.cuda else peak
        length = {"length": metrics["length"]} if metrics else {}
        self.pipe.send({"seconds": seconds, "peak, GiB": peak / 2**30} | length | self.parts)
        self.wait()

    def on_step_end(self, args, state, control, **kwargs):  # TRL calls it
        self.done({"length": self.trainer._metrics["train"]["completions/mean_length"][-1]})

    def timed(self, function, name):
        """The function, its seconds noted as a part of the unit."""
        def run(*args):
            began = self.now()
            result = function(*args)
            self.parts[name] = self.now() - began
            return result
        return run


def causal_model(cfg):
    return reward.load_model(transformers.AutoModelForCausalLM, cfg.sft, cfg.device)


def whole_reward_model(cfg, work):
    return reward.load_model(transformers.AutoModelForSequenceClassification, cfg.sft, cfg.device,
                             ("score.weight",), num_labels=1, pad_token_id=work.pad)


def sampling(cfg, work, clock, ours):
    policy = causal_model(cfg).requires_grad_(False)
    policy.to(torch.bfloat16 if cfg.precision == "bf16" else torch.float32)
    policy.generation_config.eos_token_id = None  # all answers have max_new tokens
    prompts = work.prompts[:cfg.batch]
    for unit in range(cfg.steps):
        if ours:
            uniform = reinforce.uniforms(unit, 0, range(cfg.batch), cfg.max_new)
            reinforce.sample(policy, prompts, uniform, cfg.temperature, end=-1)  # -1: no token
        else:
            inputs, _ = reward.pad_batch(prompts, [[]] * cfg.batch, cfg.device)
            del inputs["position_ids"]  # generate makes its own
            policy.generate(**inputs, do_sample=True, temperature=cfg.temperature, top_k=0,
                            top_p=1.0, max_new_tokens=cfg.max_new, pad_token_id=work.pad)
        clock.done()


def ours_step(cfg, work, clock, trunk="frozen", parts_in=None):
    cfg = replace(cfg, precision=parts_in or cfg.precision)
    policy = causal_model(cfg)
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr)
    if parts_in:
        reinforce.answer_all = clock.timed(reinforce.answer_all, "sample")
        reinforce.judge = clock.timed(reinforce.judge, "frozen pass")
        reinforce.policy_gradient = clock.timed(reinforce.policy_gradient, "gradient")
        optimizer.step = clock.timed(optimizer.step, "optimizer")
    sft = causal_model(cfg)
    rm = torch.nn.Linear(sft.config.hidden_size, 1, device=cfg.device)
    rm.layer = round(sft.config.num_hidden_layers * 2 / 3)
    if trunk == "trained":
        rm = whole_reward_model(cfg, work)
    rm.trunk = trunk
    state = reinforce.State(1.0, torch.ones(1), 0.0, torch.ones(1), [])
    reinforce.train_policy(policy, optimizer, sft, rm.requires_grad_(False), work.prompts,
                           work.keys, state, reward.Chat(cfg.sft), cfg, clock.done)


def first_step(cfg, work, clock):
    """As its main does it. `reinforce`, `reward` and the class of cfg are the first edition's."""
    reward.keep_freed_memory()
    cfg = replace(cfg, rm_micro=max(1, cfg.micro_batch // 2))  # pairs
    policy = causal_model(cfg)
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=True)
    reference = reward.frozen(causal_model(cfg))
    rm = reward.frozen(whole_reward_model(cfg, work))
    reinforce.train_policy(policy, optimizer, reference, rm, work.prompts, work.keys, cfg, work.end,
                           reinforce.fresh_state(cfg, 1.0, 0.0, [1.0]), clock.done)


def trl_settings(cfg, work, size, micro):
    return {"output_dir": work.scratch, "bf16": cfg.precision == "bf16", "report_to": "none",
            "per_device_train_batch_size": min(size, micro), "gradient_checkpointing": False,
            "gradient_accumulation_steps": max(1, size // micro), "disable_tqdm": True,
            "use_cpu": cfg.device == "cpu", "dataloader_pin_memory": False,
            "logging_strategy": "no", "save_strategy": "no"}


def trl_step(cfg, work, clock):
    from trl import RLOOConfig, RLOOTrainer
    config = RLOOConfig(
        num_generations=2, max_completion_length=cfg.max_new, temperature=cfg.temperature,
        beta=cfg.beta, learning_rate=cfg.lr, max_steps=cfg.steps,
        **trl_settings(cfg, work, cfg.batch, cfg.micro_batch))
    clock.trainer = RLOOTrainer(
        causal_model(cfg), whole_reward_model(cfg, work), config, Dataset.from_list(work.rows),
        processing_class=work.tokenizer, reward_processing_classes=work.tokenizer,
        callbacks=[clock])
    clock.trainer.train()


def ours_reward(cfg, work, clock, trunk):
    cfg = replace(cfg, trunk=trunk, rm=f"{work.scratch}/{trunk}")
    pairs = [reward.to_pair(row, "benchmark") for row in work.rows]
    sft = causal_model(cfg)
    setup = reward.Setup(pairs, pairs, "benchmark", sft, reward.Chat(cfg.sft), {})
    for _ in range(cfg.steps):
        reward.get_reward_model(cfg, setup)
        Path(cfg.rm, "metrics.json").unlink()  # now it is unfinished, and will be made again
        clock.done()


def trl_reward(cfg, work, clock):
    from trl import RewardConfig, RewardTrainer
    for _ in range(cfg.steps):
        config = RewardConfig(learning_rate=cfg.rm_lr, max_length=cfg.max_len, num_train_epochs=1,
                              **trl_settings(cfg, work, cfg.rm_batch, cfg.micro_batch // 2))
        trainer = RewardTrainer(cfg.sft, config, train_dataset=Dataset.from_list(work.rows),
                                processing_class=work.tokenizer)
        trainer.train()
        trainer.save_model(f"{work.scratch}/trl")
        del trainer
        clock.done()


TASKS = {  # of contestants: functions of settings, inputs (see main) and a clock
    "sample": {"ours": partial(sampling, ours=True), "generate": partial(sampling, ours=False)},
    "step": {"ours": ours_step, "ours, whole reward model": partial(ours_step, trunk="trained"),
             "RLOOTrainer": trl_step, "first edition": first_step},
    "reward": {"ours, frozen": partial(ours_reward, trunk="frozen"),
               "ours, trained": partial(ours_reward, trunk="trained"), "RewardTrainer": trl_reward},
    "parts": {name: partial(ours_step, parts_in=name) for name in ("fp32", "bf16")}}


def play(name, cfg, work, pipe):
    sys.stdout = sys.stderr = open(f"{work.scratch}/log", "a", buffering=1)
    TASKS[work.task][name](cfg, work, Clock(pipe, cfg.device.startswith("cuda")))


def race(names, cfg, work):
    """A table of units of work, done in turns: medians, times of the first contestant's, all."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        os.environ["EDITION"] = work.first if name == "first edition" else ROOT
        pipes[name], end = context.Pipe()
        context.Process(target=play, args=(name, cfg, work, end), daemon=True).start()
        end.close()  # so that recv() fails when that process has died
    units = {name: [] for name in names}
    for _ in range(cfg.steps):
        for name, pipe in pipes.items():
            pipe.send("go")
            try:
                units[name].append(pipe.recv())
            except EOFError:
                sys.exit(Path(work.scratch, "log").read_text() + f"\n{name} has died, see above")
    facts = [*units[names[0]][0]]
    base = statistics.median(unit["seconds"] for unit in units[names[0]][1:])
    print("| contestant |", " | ".join(facts), "| ratio | seconds of each unit |")
    print("|---" * (len(facts) + 3) + "|")
    for name, (_, *each) in units.items():
        median = {fact: statistics.median(unit[fact] for unit in each) for fact in facts}
        numbers = [*median.values(), median["seconds"] / base]
        print("|", name, "|", " | ".join(f"{x:.2f}" for x in numbers), "|",
              " ".join(f"{unit['seconds']:.2f}" for unit in each), "|")


def main():
    parser = transformers.HfArgumentParser(reinforce.ReinforceConfig, usage=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--first", metavar="FOLDER", help="step: also the first edition there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="units that count")
    cfg, work = parser.parse_args_into_dataclasses()
    if work.first and (work.task, cfg.precision, cfg.device) != ("step", "fp32", "cpu"):
        parser.error("the first edition takes part in `step`, in fp32 on a CPU")
    names = [n for n in work.only or TASKS[work.task] if n != "first edition" or work.first]
    if not reward.has_bf16(cfg.device):
        names = [name for name in names if name != "bf16"]
    cfg = replace(cfg, level=1, lr=1e-6, steps=work.repeats + 1, val_pairs=1,
                  sft=reward.find_sft(cfg), data=cfg.data or reward.BUNDLED_DATA)
    chat = reward.Chat(cfg.sft)
    work.end, work.tokenizer = chat.end, chat.tokenizer
    work.pad = min(set(chat.tokenizer.all_special_ids) - {chat.end})
    chat.tokenizer.pad_token_id = work.pad  # not the end, where a reward model reads its score
    pairs = {}  # none that is cut; one a prompt, but for `reward` all, with answers as if they end
    for p in reward.load_pairs(cfg)[0]:
        ids = chat.prompt(p.messages) + chat.tokenizer(p.chosen + p.rejected)["input_ids"]
        if len(ids) < cfg.max_len - 1 and (work.task == "reward" or all(p.finished)):
            pairs[(p.key, p.chosen, p.rejected) if work.task == "reward" else p.key] = p
    pairs = list(pairs.values())[:cfg.pairs]
    work.prompts, work.keys = reinforce.usable_prompts(chat, pairs, cfg, "prompts")
    work.rows = [{"prompt": p.messages, "chosen": [{"role": "assistant", "content": p.chosen}],
                  "rejected": [{"role": "assistant", "content": p.rejected}]} for p in pairs]
    print(f"{cfg.precision}, {torch.get_num_threads()} threads, load average {os.getloadavg()}")
    with tempfile.TemporaryDirectory() as work.scratch:
        race(names, cfg, work)


if __name__ == "__main__":
    main()
