"""The data and the experiments behind REPORT.md, one command each: run.sh has them in order.

    python results/experiments.py record "level 1" runs/demo_pairs-level1

Samples, sheets and features go to runs/samples, which is not committed; rankings.jsonl, which holds
the ranked answers themselves, and runs.jsonl, a line for each result, are.
"""
import copy
import gzip
import json
import re
import shutil
import sys
from dataclasses import replace
from itertools import compress, permutations
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import reinforce  # noqa: E402
from reinforce import (EVAL_STEP, ReinforceConfig, answer_all, judge, next_baseline,  # noqa: E402
                       pick_logprobs, readout_mean, sample, sequence_logprobs, token_logprobs,
                       uniforms, usable_prompts)
from results.tables import (RANKINGS, RUNS, SHEETS, grouped, open_lines,  # noqa: E402
                            read_lines)
from reward import (VAL_SHARE, RewardConfig, answer_features, answer_mean,  # noqa: E402
                    encode_pairs, fit_penalised, group_means, hash_words, held_out_loss, load_model,
                    load_reward_model, over_answers, pad_batch, prompt_weights, read_config, start,
                    to_pair, trunk_scores, win_probability)

WORK = ROOT / "runs" / "samples"
POOL = WORK / "pool.pt"   # of noise.py
LATER = ROOT / "results" / "later_rankings.jsonl"  # of prompts ranked last, which are in no bundle
LETTERS = "ABCD"
END = "<|im_end|>"
TEMPERATURES = (0.7, 0.7, 0.4, 0.4)
SAMPLE_STEP = 2**31 + 10  # of `uniforms`: + 0..3, one for each answer
MAX_NEW = 64
HELD_OUT = VAL_SHARE * 2**32  # prompts with a smaller key are
ADDED = 656               # of prompts.jsonl, the last ones: added after the bundle was made
DOUBLE = 150              # held-out prompts that two readers rank: the smallest keys without ADDED
PROMPTS = 64              # held-out prompts of every sheet of policies


def append_lines(path, *records):
    with open_lines(path, "a") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def all_prompts():
    """{key, as reward.Pair has it: {"prompt", "topic"}} of demo pairs and prompts.jsonl."""
    rows = read_lines(ROOT / "data/demo_pairs.jsonl") + read_lines(ROOT / "data/prompts.jsonl")
    return {key_of(row): {"prompt": row["prompt"], "topic": row["topic"]} for row in rows}


def key_of(row):
    return hash_words([row["prompt"]])


# ----- samples, sheets, rankings, bundle -----

def sample_answers(path, policy, chat, rows, temperatures, step, batch):
    """Answers to each row's prompt, one at each temperature -> a line of `path` each; goes on where
    it was stopped."""
    done = {row["prompt"] for row in read_lines(path)}
    todo = [row for row in rows if row["prompt"] not in done]
    for i in range(0, len(todo), batch):
        part = todo[i:i + batch]
        ids = [chat.prompt([{"role": "user", "content": row["prompt"]}]) for row in part]
        keys = [key_of(row) for row in part]
        answers = []
        for number, temperature in enumerate(temperatures):
            numbers = uniforms(0, step + number, keys, MAX_NEW)
            answers.append(sample(policy, ids, numbers, temperature, chat.end))
        for row, four in zip(part, zip(*answers)):
            append_lines(path, {
                **row, "answers": chat.tokenizer.batch_decode(four, skip_special_tokens=True),
                "finished": [a[-1] == chat.end for a in four], "temperatures": temperatures})
        print(f"{i + len(part)} of {len(todo)} prompts", flush=True)


def make_samples():
    """Four answers to every prompt -> WORK/samples.jsonl."""
    setup = start(RewardConfig(device="cpu"))
    WORK.mkdir(parents=True, exist_ok=True)
    rows = sorted(all_prompts().values(), key=lambda row: len(row["prompt"]))
    sample_answers(WORK / "samples.jsonl", setup.sft, setup.chat, rows, TEMPERATURES, SAMPLE_STEP,
                   24)


def make_aligned(run, reader):
    """Sheets of four answers of an aligned policy to held-out prompts."""
    run = Path(run)
    chat = start(RewardConfig(device="cpu")).chat
    policy = load_model(AutoModelForCausalLM, run / "model", "cpu").requires_grad_(False)
    first = sorted(all_prompts().values(), key=key_of)[:PROMPTS]  # all of them held out
    rows = [{**row, "arms": [run.name] * 4} for row in first]
    path = WORK / f"aligned-{run.name}.jsonl"
    sample_answers(path, policy, chat, rows, (0.7,) * 4, SAMPLE_STEP + 10, 16)
    write_sheets(path.stem, read_lines(path), reader)


def write_sheets(name, rows, reader, size=40):
    """Blind sheets of requests with their answers, in drawn order, and the keys that tell it."""
    for first in range(0, len(rows), size):
        text = []
        key = {}
        for number, row in enumerate(rows[first:first + size], 1):
            rng = np.random.default_rng([ord(reader), key_of(row)])
            order = rng.permutation(len(row["answers"])).tolist()
            key[number] = {**row, "reader": reader, "order": order}
            text.append(f"## {number}\n\nRequest: {row['prompt']}\n")
            for letter, j in zip(LETTERS, order):
                cut = "" if row["finished"][j] else " [CUT]"
                text.append(f"{letter}: {row['answers'][j].strip()}{cut}\n")
        sheet = WORK / f"{name}-{reader}-{first // size:02d}.md"
        sheet.write_text("\n".join(text), encoding="utf-8")
        sheet.with_suffix(".key.json").write_text(json.dumps(key), encoding="utf-8")


def make_sheets(reader, part):
    """Sheets of what this reader has not ranked yet: training prompts (parts "train" and, ranked
    after the bundle was made, "later"), or the held-out ones that two readers rank."""
    ranked = {(row["prompt"], row["reader"]) for row in read_lines(RANKINGS) + read_lines(LATER)}
    added = {row["prompt"] for row in read_lines(ROOT / "data/prompts.jsonl")[-ADDED:]}
    held_out = part == "held-out"
    rows = [row for row in read_lines(WORK / "samples.jsonl")
            if (key_of(row) < HELD_OUT) == held_out
            and (row["prompt"] in added) == (part == "later")]
    rows.sort(key=key_of)
    if held_out:
        rows = rows[:DOUBLE]
    rows = [row for row in rows if (row["prompt"], reader) not in ranked]
    write_sheets(f"{part}-{len(ranked)}", rows, reader)


def verdict_prompts(cfg, part=slice(PROMPTS)):
    """(setup, prompts, keys) of held-out prompts, by default the first ones of a run's verdict."""
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation")
    return setup, prompts[part], keys[part]


def write_answers(out, keys, answers, chat):
    """{arm: answers} as make_duels reads them, as eval.py writes them, for one seed; added to what
    OUT has for the same prompts."""
    texts = {arm: [chat.tokenizer.batch_decode(y)] for arm, y in answers.items()}
    known = json.loads(Path(out).read_text()) if Path(out).exists() else {"answers": {}}
    if known.setdefault("prompts", keys) != keys:
        raise ValueError(f"{out} has answers to other prompts")
    known["answers"] |= texts
    Path(out).write_text(json.dumps(known))


def cooled(temperature, part, out, *runs):
    """Answers of the SFT model and of policies (NAME=RUN) at a temperature, with the random numbers
    of the verdict, to the "first" held-out prompts, the "others" or "all"."""
    # fp32, as it was for all answers that were read before
    cfg = ReinforceConfig(temperature=float(temperature), precision="fp32")
    parts = {"first": slice(PROMPTS), "others": slice(PROMPTS, None), "all": slice(None)}
    setup, prompts, keys = verdict_prompts(cfg, parts[part])
    answers = {}
    for item in ("sft", *runs):
        name, _, run = item.partition("=")
        policy = setup.sft
        if run:
            policy = load_model(AutoModelForCausalLM, Path(run) / "model", cfg.device)
        y = answer_all(policy, prompts, keys, cfg.seed, EVAL_STEP, cfg, setup.chat.end)
        answers[f"{name} at {temperature}"] = y
    write_answers(out, keys, answers, setup.chat)


def untrained_arms(folder, out):
    """What needs no REINFORCE, beside the SFT model: the best of 4 and of 16 samples (noise.py
    pool) by a reward model, and the SFT model asked for one short sentence."""
    cfg = ReinforceConfig()
    setup, prompts, keys = verdict_prompts(cfg)
    rm = load_reward_model(folder, setup, "cpu")
    pool = torch.load(POOL)
    if pool["keys"] != keys:
        raise ValueError("the pool was made for other prompts")
    rows = all_prompts()
    short = []
    for key in keys:
        text = rows[key]["prompt"] + "\n\nAnswer in one short sentence."
        short.append(setup.chat.prompt([{"role": "user", "content": text}]))
    answers = {}
    for name, x in (("sft", prompts), ("one short sentence", short)):
        answers[name] = answer_all(setup.sft, x, keys, cfg.seed, EVAL_STEP, cfg, setup.chat.end)
    scores = expected(rm(torch.stack(pool["features"])[..., COLUMNS[rm.layer]]))  # (n, P)
    for n in (4, 16):
        best = scores[:n].argmax(0)
        answers[f"best of {n}"] = [pool["answers"][j][i] for i, j in enumerate(best)]
    write_answers(out, keys, answers, setup.chat)


def make_duels(evaluation, reader, first, second):
    """Sheets of two policies' answers of one evaluation (the json of eval.py, its first seed)."""
    result = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    prompts = all_prompts()
    rows = []
    for i, key in enumerate(result["prompts"]):
        both = [result["answers"][name][0][i] for name in (first, second)]
        rows.append({"prompt": prompts[key]["prompt"], "arms": [first, second],
                     "answers": [text.removesuffix(END) for text in both],
                     "finished": [text.endswith(END) for text in both]})
    write_sheets(f"{Path(evaluation).stem}-{first}-{second}", rows, reader)


def read_ranking(line, answers=4):
    """`B>A=D>C` -> the place of each letter, best 0: {"B": 0, "A": 1, "D": 1, "C": 2}."""
    groups = [group.split("=") for group in line.split(">")]
    if sorted(sum(groups, [])) != list(LETTERS[:answers]):
        raise ValueError(f"{line!r} ranks no {answers} answers")
    return {letter: place for place, group in enumerate(groups) for letter in group}


def collect():
    """Sheets with a .ranked file (lines `17: B>A=D>C`) -> rankings.jsonl; of duels SHEETS, of part
    "later" LATER."""
    new = {SHEETS: [], RANKINGS: [], LATER: []}
    for path in sorted(WORK.glob("*.ranked")):
        key = json.loads(path.with_suffix(".key.json").read_text(encoding="utf-8"))
        for number, line in re.findall(r"^(\d+): *(\S+)$", path.read_text(), re.M):
            row = key[number]
            order = row.pop("order")
            places = read_ranking(line, len(order))
            row["places"] = [places[LETTERS[order.index(j)]] for j in range(len(order))]
            target = SHEETS if "arms" in row else RANKINGS
            if path.name.startswith("later-"):
                target = LATER
            new[target].append(row)
    for path, rows in new.items():
        known = read_lines(path)
        append_lines(path, *(row for row in rows if row not in known))


def agreed_pairs(rankings):
    """(row of the data's format, i, j) for the answers i and j to one prompt of which all rankings
    say that i is better."""
    for prompt, same in grouped(rankings, "prompt").items():
        answers = same[0]["answers"]
        finished = same[0]["finished"]
        for i, j in permutations(range(4), 2):
            if all(ranking["places"][i] < ranking["places"][j] for ranking in same):
                yield {"prompt": prompt, "chosen": answers[i], "rejected": answers[j],
                       "chosen_finished": finished[i], "rejected_finished": finished[j],
                       "topic": same[0].get("topic")}, i, j


def bundle():
    """All pairs of every ranking (held-out: on which both readers agree) in the data's format."""
    rankings = sorted(read_lines(RANKINGS), key=itemgetter("prompt"))
    with gzip.GzipFile(ROOT / "data" / "sample_pairs.jsonl.gz", "wb", mtime=0) as file:
        for row, _, _ in agreed_pairs(rankings):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def one_pair_each():
    """Of each ranked training prompt one row of the bundle, drawn."""
    rng = np.random.default_rng(0)
    rows = read_lines(ROOT / "data" / "sample_pairs.jsonl.gz")
    drawn = [same[rng.integers(len(same))] for same in grouped(rows, "prompt").values()]
    return [row for row in drawn if key_of(row) >= HELD_OUT]


def one_pair(out):
    """The same as a file: all that an epoch of a trained trunk has time for on a CPU."""
    append_lines(Path(out), *one_pair_each())


# ----- reward models: what they are fitted to, and on which pairs they are right -----

# columns of features: layers (of 30) averaged over the answer's tokens, the state of its last token
# in layer 20, the SFT model's mean log-prob at 0.7, length in tokens, and whether the answer ends
LAYERS = (10, 15, 20, 25)
WIDTH = 576
COLUMNS = {place: [*range(i * WIDTH, i * WIDTH + WIDTH)]
           for i, place in enumerate([*LAYERS, "last token"])}
LOGPROB = WIDTH * len(COLUMNS)
LENGTH = LOGPROB + 1
FINISHED = LENGTH + 1


@torch.no_grad()
def make_features(setup, prompt, answers):
    """(n, 5 WIDTH + 3) of n answers to one prompt, by one pass of the whole SFT model."""
    inputs, mask = pad_batch([prompt] * len(answers), answers, "cpu")
    T = mask.shape[1]
    output = setup.sft(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=T + 1)
    logp = pick_logprobs(output.logits, inputs["input_ids"], mask, 0.7)
    length = mask.sum(1)
    last = output.hidden_states[20][range(len(answers)), length - T - 1]
    ended = torch.tensor([[float(a[-1] == setup.chat.end)] for a in answers])
    return torch.cat([*(answer_mean(output.hidden_states[layer], mask) for layer in LAYERS), last,
                      (logp.sum(1) / length)[:, None], length[:, None], ended], 1)


def load_features(*parts):
    """Parts of the pairs, "train", "held-out" or "more" (train and those of LATER), each as (pairs,
    encoded, features (N, D), rows (B, 2)). Features are kept in WORK/features.pt, as they take half
    an hour."""
    cfg = RewardConfig(device="cpu")
    setup = start(cfg)
    path = WORK / "features.pt"
    known = torch.load(path) if path.exists() else {}

    def features(prompt, answers):
        names = [str((prompt, answer)) for answer in answers]
        if not all(name in known for name in names):
            known.update(zip(names, make_features(setup, prompt, answers)))
            if len(known) % 100 < 4:
                torch.save(known, path)
        return torch.stack([known[name] for name in names])

    later = [to_pair(row, "ranking") for row, _, _ in agreed_pairs(read_lines(LATER))]
    all_pairs = {"train": setup.train, "held-out": setup.val, "more": setup.train + later}
    result = []
    for pairs in map(all_pairs.get, parts):
        encoded = encode_pairs(setup.chat, pairs, cfg.max_len, "pairs")
        if len(encoded) != len(pairs):
            raise ValueError("masks over pairs and rows of encoded pairs would not fit")
        result.append((pairs, encoded, *over_answers(features, encoded)))
    torch.save(known, path)
    return result


def texts_of(pair):
    return pair.messages[0]["content"], pair.chosen, pair.rejected


def is_written(pairs):
    """(B,): whether a pair is a written one, not of samples."""
    return torch.tensor([None not in p.ratings for p in pairs])


def by_a_coin(rows, written):
    """The rows (B, 2) of pairs, those of samples in an order that a coin has drawn."""
    flip = torch.from_numpy(np.random.default_rng(0).random(len(rows)) < 0.5) & ~written
    return torch.where(flip[:, None], rows.flip(1), rows)


def expected(logits):
    """The score: the number at level 1, E[S] at level 2; (..., K) -> (...)."""
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return readout_mean(logits.softmax(-1), None, None)


def accuracy_by_prompt(logits, rows, encoded):
    """{key of a prompt: on which share of its pairs the outputs (N, K) are right, a tie half}"""
    z_w, z_l = logits[rows].double().unbind(1)
    win = win_probability(z_w, z_l).numpy().round(6)  # so that a tie is 0.5 exactly
    right = (np.sign(win - 0.5) + 1) / 2
    means = group_means(right, [str(e.key) for e in encoded])
    return {key: round(mean, 4) for key, mean in means.items()}


def record_heldout(name, level, logits, part, **more):
    """One line of runs.jsonl: on which held-out pairs the outputs (N, K) for the answers of a part
    are right, by prompt: written pairs and pairs of samples, of one temperature and of two; and how
    scores go with length and end on samples."""
    pairs, encoded, x, rows = part
    known = {texts_of(to_pair(row, "ranking")): TEMPERATURES[i] == TEMPERATURES[j]
             for row, i, j in agreed_pairs(read_lines(RANKINGS))}
    same = torch.tensor([known.get(texts_of(p), False) for p in pairs])
    written = is_written(pairs)
    line = {"kind": "reward", "name": name, "level": level, **more, "accuracy": {}}
    for kind, mask in (("written", written), ("samples", ~written),
                       ("one temperature", ~written & same),
                       ("two temperatures", ~written & ~same)):
        line["accuracy"][kind] = accuracy_by_prompt(logits, rows[mask], compress(encoded, mask))
    samples = rows[~written].unique()
    score = expected(logits)[samples]
    for sign, column in (("length", LENGTH), ("finished", FINISHED)):
        both = torch.stack([score, x[samples, column]])
        line["correlation with " + sign] = torch.corrcoef(both)[0, 1].item()
    append_lines(RUNS, line)
    print(name, level, more, {k: np.mean([*a.values()]) for k, a in line["accuracy"].items()})


def fit_and_record(name, level, train, val, mask=None, columns=COLUMNS[20], seed=0, share=None):
    """A frozen head on some columns of features, fitted to the training pairs of a mask, or to all;
    written pairs have a share of the weight, or as much as prompts that count once give them."""
    pairs, encoded, x, rows = train
    written = is_written(pairs)
    if mask is not None:
        encoded = list(compress(encoded, mask))
        written = written[mask]
        rows = rows[mask]
    weight = prompt_weights(encoded, seed)
    if share:
        weight = torch.where(written, weight / weight[written].sum() * share,
                             weight / weight[~written].sum() * (1 - share))
    cfg = RewardConfig(level=level)
    folds = torch.tensor([e.dialogue % 5 for e in encoded])
    x = x[:, columns]
    W, b, penalty = fit_penalised(x, rows, weight, folds, cfg)
    z = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    loss = held_out_loss(z, rows, weight, folds, cfg, penalty)
    ranked = {e.key for e in compress(encoded, ~written)}
    record_heldout(name, level, val[2][:, columns] @ W + b, val, bootstrap=seed, penalty=penalty,
                   fold_loss=loss, ranked_prompts=len(ranked))


def heads(level):
    """Frozen heads of one level -> runs.jsonl: by what they are fitted to, by the number of ranked
    prompts, and (level 1) by their features."""
    train, val, more = load_features("train", "held-out", "more")
    pairs, encoded, x, rows = train
    written = is_written(pairs)
    coin = (pairs, encoded, x, by_a_coin(rows, written))
    fit_and_record("samples", level, train, val, ~written)
    fit_and_record("both, with later prompts", level, more, val)
    fit_and_record("both, samples by a coin", level, coin, val)
    for seed in range(5):
        fit_and_record("written pairs", level, train, val, written, seed=seed)
        fit_and_record("both", level, train, val, seed=seed)
    drawn = {texts_of(to_pair(row, "bundle")) for row in one_pair_each()}
    one = torch.tensor([texts_of(p) in drawn for p in pairs])
    fit_and_record("both, one pair a prompt", level, train, val, written | one)
    prompts = list(dict.fromkeys(e.key for e in compress(encoded, ~written)))
    for n in (60, 125, 250, 500, 1000):
        chosen = set(prompts[:n])
        few = torch.tensor([e.key in chosen for e in encoded])
        fit_and_record(f"both, {n} ranked prompts", level, train, val, written | few)
    for share in (0.2, 0.5, 0.8):
        fit_and_record(f"both, written pairs {share} of the weight", level, train, val, share=share)
    if level == 1:
        for name, columns in (
                ("layer 10", COLUMNS[10]), ("layer 15", COLUMNS[15]), ("layer 25", COLUMNS[25]),
                ("layers 15, 20, 25", COLUMNS[15] + COLUMNS[20] + COLUMNS[25]),
                ("last token of layer 20", COLUMNS["last token"]),
                ("layer 20 and its last token", COLUMNS[20] + COLUMNS["last token"]),
                ("layer 20 and mean log-prob", [*COLUMNS[20], LOGPROB])):
            fit_and_record("both, " + name, level, train, val, columns=columns)
        x = val[2]
        for name, score in (("shorter", -x[:, LENGTH]), ("finished", x[:, FINISHED]),
                            ("mean log-prob of the SFT model", x[:, LOGPROB])):  # no reader needed
            record_heldout(name, 1, score[:, None], val)


def control_head(kind, like, out):
    """A head of level 1 as a reward model folder for reinforce.py: fitted to "written" pairs, to
    "samples", or to both with the samples ordered by a "coin". LIKE: the bundled data's."""
    pairs, encoded, x, rows = load_features("train")[0]
    written = is_written(pairs)
    if kind == "coin":
        rows = by_a_coin(rows, written)
    else:
        mask = written if kind == "written" else ~written
        encoded = list(compress(encoded, mask))
        rows = rows[mask]
    folds = torch.tensor([e.dialogue % 5 for e in encoded])
    W, b, penalty = fit_penalised(x[:, COLUMNS[20]], rows, prompt_weights(encoded, 0), folds,
                                  RewardConfig(level=1))
    shutil.copytree(like, out)
    save_file({"weight": W.T.contiguous(), "bias": b}, Path(out) / "head.safetensors")
    (Path(out) / "metrics.json").write_text(json.dumps({"layer": 20, "penalty": penalty}))


def held_out(name, folder):
    """A trained trunk, judged as the frozen heads are -> runs.jsonl."""
    [val] = load_features("held-out")
    rm = load_reward_model(folder, start(RewardConfig(device="cpu")), "cpu")

    def scores(prompt, answers):
        return trunk_scores(rm, [prompt] * len(answers), answers)

    logits, _ = over_answers(scores, val[1])
    record_heldout(f"{name}, trained trunk", rm.level, logits, val)


def aligned(name, folder, policy):
    """A frozen head on the pairs of an aligned policy's samples that both readers order alike."""
    rankings = [row for row in read_lines(SHEETS) if row["arms"] == [policy] * 4]
    pairs = [to_pair(row, "sheet") for row, _, _ in agreed_pairs(rankings)]
    setup = start(RewardConfig(device="cpu"))
    rm = load_reward_model(folder, setup, "cpu")
    encoded = encode_pairs(setup.chat, pairs, RewardConfig(device="cpu").max_len, "aligned")

    def scores(prompt, answers):
        return rm(answer_features(setup.sft, prompt, answers, rm.layer))

    logits, rows = over_answers(scores, encoded)
    append_lines(RUNS, {"kind": "aligned", "name": name, "policy": policy, "level": rm.level,
                        "pairs": len(encoded),
                        "accuracy": accuracy_by_prompt(logits, rows, encoded)})


def validated(name, folder):
    """A reward model's own validation, on other data than ours, as a line of runs.jsonl."""
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    level = read_config(folder)["level"]
    append_lines(RUNS, {"kind": "validated", "name": name, "level": level} | metrics)


def record(name, folder):
    """A finished run of reinforce.py as a line of runs.jsonl."""
    folder = Path(folder)
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    append_lines(RUNS, {"kind": "policy", "name": name, "verdict": verdict,
                        "run": read_config(folder), "steps": read_lines(folder / "metrics.jsonl")})


def two_judges(reward_model, seed, prompts=96):
    """(setup, a function): policy -> its KL, and scores of its held-out answers by the reward model
    of training ("own") and by a head fitted to the held-out pairs alone, which shares no label with
    it ("other")."""
    encoded, x, rows = load_features("held-out")[0][1:]
    folds = torch.tensor([e.dialogue % 5 for e in encoded])
    W, b, _ = fit_penalised(x[:, COLUMNS[20]], rows, prompt_weights(encoded, 0), folds,
                            RewardConfig(level=1))
    cfg = ReinforceConfig(device="cpu", seed=seed, precision="fp32")
    setup = start(cfg)
    prompts, keys = usable_prompts(setup.chat, setup.val, cfg, "evaluation", prompts)
    own = load_reward_model(reward_model, setup, "cpu")
    both = torch.nn.Linear(len(W), own.out_features + 1).requires_grad_(False)  # in one pass
    both.load_state_dict({"weight": torch.cat([own.weight, W.T]), "bias": torch.cat([own.bias, b])})
    both.layer, both.trunk = own.layer, own.trunk

    def judged(policy):
        y = answer_all(policy, prompts, keys, seed, EVAL_STEP, cfg, setup.chat.end)
        outputs, ref_logp = judge(both, setup.sft, prompts, y, cfg)
        scores = {"own": expected(outputs[:, :-1]), "other": outputs[:, -1]}
        kl = (sequence_logprobs(policy, prompts, y, cfg) - ref_logp).mean().item()
        return {"kl": kl} | {name: [round(v, 3) for v in score.tolist()]
                             for name, score in scores.items()}

    return setup, judged


def checkpoints(name, reward_model, seed, *files):
    """The SFT model and one run's checkpoints, by two judges -> runs.jsonl."""
    setup, judged = two_judges(reward_model, seed)
    append_lines(RUNS, {"kind": "checkpoint", "name": name, "step": 0} | judged(setup.sft))
    policy = copy.deepcopy(setup.sft)
    for file in files:
        saved = torch.load(file, weights_only=True)
        policy.load_state_dict(saved["policy"])
        step = len(saved["state"]["log"])
        append_lines(RUNS, {"kind": "checkpoint", "name": name, "step": step} | judged(policy))


def readouts(name, reward_model, seed, *runs):
    """The SFT model and finished runs, NAME=RUN, by the same judges, on all held-out prompts."""
    setup, judged = two_judges(reward_model, seed, prompts=None)
    append_lines(RUNS, {"kind": "readout", "name": name, "step": "sft"} | judged(setup.sft))
    for readout, run in (item.split("=") for item in runs):
        policy = load_model(AutoModelForCausalLM, Path(run) / "model", "cpu")
        append_lines(RUNS, {"kind": "readout", "name": name, "step": readout} | judged(policy))


def doubled(name, reward_model, seed, out, *files):
    """The mean of some checkpoints' weights, and weights twice as far from the SFT model, by the
    same judges -> runs.jsonl; the latter to OUT/model."""
    setup, judged = two_judges(reward_model, seed)
    saved = [torch.load(file, weights_only=True, mmap=True)["policy"] for file in files]
    policy = copy.deepcopy(setup.sft)
    for factor, step in ((1, "mean of the last half"), (2, "twice as far")):
        with torch.no_grad():
            for part, weight in policy.state_dict().items():
                mean = (sum(weights[part].double() for weights in saved) / len(saved)).float()
                sft = setup.sft.state_dict()[part]
                weight.copy_(sft + factor * (mean - sft))
        append_lines(RUNS, {"kind": "checkpoint", "name": name, "step": step} | judged(policy))
    policy.save_pretrained(Path(out) / "model")


def pure_noise(level, reward_model, out):
    """A run (default settings, without the penalty for not ending) whose rewards in training are
    drawn, whatever the answer -> runs.jsonl: how far noise alone moves a policy."""
    cfg = ReinforceConfig(level=level, rm=reward_model, out=out, eos_penalty=0.0, seed=7)
    cfg = replace(cfg, save_every=cfg.steps)  # it starts again if it is stopped: calls are counted
    read_scores = reinforce.read_scores
    spreads = []  # one a call: calibration, the steps, then the verdict

    def drawn(logits, past, cfg):
        scores = read_scores(logits, past, cfg)
        if 1 <= len(spreads) <= cfg.steps:
            rng = np.random.default_rng([cfg.seed, len(spreads) - 1, 99])
            scores = torch.from_numpy(rng.normal(0, spreads[0], len(logits)).astype(np.float32))
        spreads.append(scores.std().item())
        return scores

    reinforce.read_scores = drawn
    reinforce.main(cfg)
    record(f"level {level}, drawn rewards", out)


# ----- how noisy a gradient is, by baseline -----

def sketch(tensors, width=2**20):
    """(width,): tensors as one vector with drawn signs, folded. Inner products stay what they are,
    up to noise of 1 / sqrt(width) of the vectors' lengths."""
    flat = torch.cat([t.flatten() for t in tensors])
    rng = torch.Generator().manual_seed(0)
    flat *= torch.randint(2, flat.shape, generator=rng, dtype=torch.int8) * 2 - 1
    return torch.nn.functional.pad(flat, (0, -len(flat) % width)).view(-1, width).sum(0)


def variance(name, run, reward_model, at, prompts=96):
    """Gradients of single answers, at the start or at the end of a run of REINFORCE -> runs.jsonl:
    their rewards R, the products of grad log pi (N, N), and the baselines b that the run has there,
    or would have. Answers to training prompts, the last ones, with random numbers of their own."""
    run = Path(run)
    log = read_lines(run / "metrics.jsonl")
    there = read_config(run)
    names = ("level", "temperature", "max_prompt", "max_new", "beta", "eos_penalty", "decay")
    cfg = ReinforceConfig(device="cpu", **{field: there[field] for field in names})
    setup = start(cfg)
    end = setup.chat.end
    rm = load_reward_model(reward_model, setup, "cpu")
    x, keys = usable_prompts(setup.chat, setup.train, cfg, "REINFORCE")
    x = x[-prompts:]
    policy = setup.sft
    b = {"ema": log[0]["baseline"], "mean": log[0]["baseline"], "none": 0.0}
    if at == "end":
        policy = load_model(AutoModelForCausalLM, run / "model", "cpu")
        for step, m in enumerate(log):
            for kind in ("ema", "mean"):
                as_if = replace(cfg, baseline=kind)
                b[kind] = next_baseline(b[kind], m["reward"], step, as_if)

    y = answer_all(policy, x, keys[-prompts:], cfg.seed, SAMPLE_STEP + 200, cfg, end)
    with torch.no_grad():
        outputs, ref_logp = judge(rm, setup.sft, x, y, cfg)
    ended = torch.tensor([float(a[-1] == end) for a in y])
    unit = json.loads((run / "verdict.json").read_text(encoding="utf-8"))["unit"]
    r = expected(outputs) / unit - cfg.eos_penalty * (1 - ended)                 # (N,)
    policy.requires_grad_(True)
    sketches = []
    logp = torch.empty(prompts)
    for i in range(prompts):
        policy.zero_grad()
        one = token_logprobs(policy, x[i:i + 1], y[i:i + 1], cfg.temperature).sum()
        one.backward()
        logp[i] = one.detach()
        sketches.append(sketch([p.grad for p in policy.parameters()]))
    g = torch.stack(sketches)                                                    # (N, width)
    reward = r - cfg.beta * (logp - ref_logp)
    append_lines(RUNS, {"kind": "variance", "name": name, "at": at, "baselines": b,
                        "rewards": [round(R, 4) for R in reward.tolist()],
                        "products": [[round(v) for v in row] for row in (g @ g.T).tolist()]})


COMMANDS = {
    "samples": make_samples, "sheets": make_sheets, "duels": make_duels, "collect": collect,
    "cooled": cooled, "aligned_sheets": make_aligned, "bundle": bundle, "one_pair": one_pair,
    "heads": heads, "aligned": aligned, "held_out": held_out, "record": record,
    "validated": validated, "checkpoints": checkpoints, "untrained_arms": untrained_arms,
    "control_head": control_head, "doubled": doubled, "pure_noise": pure_noise,
    "readouts": readouts, "variance": variance}

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    COMMANDS[command](*(int(a) if a.isdigit() else a for a in arguments))
