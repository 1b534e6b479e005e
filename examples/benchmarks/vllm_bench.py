"""Speeds of vLLM on a model, as `plinth bench --compare` reads them: a JSON object in the last line.

usage: vllm_bench.py MODEL [--prompt N] [--generate N] [--batch N,…]

Prefill is the time to one token after a prompt; decode is what the tokens after the first take, for one sequence and for
several at once. Each is run twice and the first run is not counted.
"""

import argparse
import json
import os
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--generate", type=int, default=128)
parser.add_argument("--batch", default="")
args = parser.parse_args()
batches = [int(n) for n in args.batch.split(",") if n]

# What vLLM prints goes to standard error: standard output is for the figures.
figures = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from vllm import LLM, SamplingParams  # noqa: E402

model = LLM(args.model, dtype="bfloat16", max_model_len=args.prompt + args.generate + 64, enable_prefix_caching=False,
            max_num_seqs=max([8, *batches]))


def seconds(sequences, prompt, generate):
    def prompts(seed):
        return [{"prompt_token_ids": [(i * 7919 + (seed + s) * 104729 + 1000) % 40000 for i in range(prompt)]}
                for s in range(sequences)]

    sampling = SamplingParams(temperature=0, max_tokens=generate, ignore_eos=True)
    model.generate(prompts(1000), sampling, use_tqdm=False)
    begin = time.monotonic()
    model.generate(prompts(0), sampling, use_tqdm=False)
    return time.monotonic() - begin


def decode(sequences):
    more = seconds(sequences, 8, args.generate) - seconds(sequences, 8, 1)
    return sequences * (args.generate - 1) / more


json.dump({
    "prefill_tokens_per_second": args.prompt / seconds(1, args.prompt, 1),
    "decode_tokens_per_second": decode(1),
    "batches": [{"sequences": n, "decode": {"median": decode(n)}} for n in batches],
}, figures)
figures.flush()
sys.exit(0)
