"""Kills runs on a tiny model with SIGKILL at random moments, and fills their disk.

    python benchmarks/kill.py --kills 50

A run (reward model, REINFORCE, evaluation, a checkpoint after every update) is killed and started
again until it ends; then its weights, metrics and verdict have to be those of an unbroken run, bit
for bit. The moments are uniform over a run's time, a third of them aimed at the writing of a
checkpoint, model or verdict. Last, a limit on the size of files makes a checkpoint fail: one clear
line, the one before intact, and the same command ends as if nothing had happened.

Each run is a fork of this process, which has imported everything and computed nothing.
"""
import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reinforce  # noqa: E402
import reward  # noqa: E402

FLAGS = ("--sft sft --data pairs.jsonl --device cpu --level 2 --out {0} --rm {0}-rm --max_len 120 "
         "--rm_batch 4 --steps 6 --batch 4 --micro_batch 2 --max_new 8 --calibration 8 "
         "--eval_prompts 4 --lr 1e-3 --save_every 1")


def fork(work):
    """Process id of a child that does work() and exits with its code, silent."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open("log", "a") as log:
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            work()
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code or 0)


def command(name, slow=0.0):
    """The command of reinforce.py, in a child; renaming takes `slow` seconds, to be hit there."""
    sys.argv = ["reinforce.py", *FLAGS.format(name).split()]
    if slow:
        rename = os.replace
        os.replace = lambda *paths: (time.sleep(slow), rename(*paths), time.sleep(slow))
    reward.run_cli(reinforce.main)


def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(name):
    """What a finished run has left, without what differs by time and name."""
    steps = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    for step in steps:
        del step["tokens_per_second"]
    weights = [Path(folder, "model/model.safetensors").read_bytes()
               for folder in (name, name + "-rm")]
    return (steps, weights, json.loads(Path(name, "verdict.json").read_text()) | {"rm": None},
            json.loads(Path(name + "-rm", "metrics.json").read_text()))


def forget(name):
    for folder in (name, name + "-rm"):
        shutil.rmtree(folder, ignore_errors=True)


def make_inputs():
    """A random Llama of two layers, and 24 pairs; made by the tests' own fakes, in a child."""
    import test_all
    test_all.tiny_llama(scale=3.0).save_pretrained("sft")
    test_all.tokenizer.__wrapped__().save_pretrained("sft")
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, test_all.toy_pairs())))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, folder = np.random.default_rng(args.seed), tempfile.mkdtemp()
    with contextlib.chdir(folder):
        assert finish(fork(make_inputs)) == 0, Path("log").read_text()
        began = time.perf_counter()
        assert finish(fork(lambda: command("whole"))) == 0, Path("log").read_text()
        seconds, whole = time.perf_counter() - began, outcome("whole")
        kills = runs = writing = 0
        while kills < args.kills:
            slow = 0.02 if rng.random() < 1 / 3 else 0.0
            child = fork(lambda: command("broken", slow))
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            code = finish(child)
            assert code in (0, -signal.SIGKILL), Path("log").read_text()
            kills += code == -signal.SIGKILL
            writing += code == -signal.SIGKILL and any(Path(".").rglob("*.aside"))
            if code == 0 or kills == args.kills:
                assert finish(fork(lambda: command("broken"))) == 0, Path("log").read_text()
                assert outcome("broken") == whole
                runs += 1
                forget("broken")
        print(f"{kills} of {kills} kills survived, {writing} of them while a file was being "
              f"written: {runs} runs ended with the weights, metrics and verdict of an unbroken "
              f"one ({seconds:.1f} s)")

        fill_the_disk(whole)
    shutil.rmtree(folder)


def fill_the_disk(whole):
    """From the third REINFORCE checkpoint on, no file may be longer than 100 kB."""
    def limited():
        save, count = reinforce.save_checkpoint, [0]

        def counting(*rest):
            count[0] += 1
            if count[0] == 3:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            save(*rest)
        reinforce.save_checkpoint = counting
        command("full")

    Path("log").write_text("")
    code = finish(fork(limited))
    line, = re.findall("error: .*", Path("log").read_text())
    print(f"disk full: exit code {code}, {line}")
    assert code == 2 and "free some space" in line and not any(Path("full").glob("*.aside"))
    Path("log").write_text("")
    assert finish(fork(lambda: command("full"))) == 0, Path("log").read_text()
    assert "going on after step 2 of 6" in Path("log").read_text()
    assert outcome("full") == whole
    print("with space again, the same command went on after step 2 and ended as the unbroken run")


if __name__ == "__main__":
    main()
