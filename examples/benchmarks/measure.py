"""Measures plinth and other engines in turns, and prints one table.

Started by run.sh, which gets and makes what is measured. Needs nothing but Python.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent


class Unavailable(Exception):
    """A row cannot be measured; the text says why."""


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": values}


class Machine:
    """What is measured: the engines and where their files lie."""

    def __init__(self, args):
        self.plinth = str(args.plinth)
        self.cache = args.cache
        self.llama_folder = args.cache / ("llama-avx2" if args.avx2 else "llama")
        self.flags = ["--facts", str(without_wide_vectors(self.plinth, args.cache))] if args.avx2 else []
        self.threads = args.threads
        self.rounds = args.rounds

    def model(self, name):
        path = self.cache / "models" / name
        if not path.exists():
            raise Unavailable(f"the model {name} is not there")
        return str(path)

    def llama(self, tool):
        path = self.llama_folder / tool
        if not path.exists():
            raise Unavailable("llama.cpp is not there: run.sh says why")
        return str(path)

    def llama_bench(self, model, prompt, generate, depth=0):
        return [self.llama("llama-bench"), "-m", self.model(model), "-t", str(self.threads), "-p", str(prompt),
                "-n", str(generate), "-d", str(depth), "-r", "1", "-o", "json"]

    def llama_batches(self, model, generate, sequences):
        room = max(sequences) * (generate + 8)
        return [self.llama("llama-batched-bench"), "-m", self.model(model), "-t", str(self.threads), "-c", str(room),
                "-npp", "8", "-ntg", str(generate), "-npl", ",".join(map(str, sequences)), "--output-format", "jsonl"]

    def vllm_bench(self, model, *flags):
        python = self.cache / "vllm/bin/python"
        if not python.exists():
            raise Unavailable("vLLM is not there: run.sh --vllm gets it")
        return ["env", f"VLLM_CPU_OMP_THREADS_BIND=0-{self.threads - 1}", str(python), str(HERE / "vllm_bench.py"),
                self.model(model), *flags]

    def bench(self, model, prompt, generate, peer, *flags):
        """Figures of `plinth bench`, with a peer's beside them."""
        command = [self.plinth, "bench", self.model(model), "-t", str(self.threads), "-p", str(prompt), "-n",
                   str(generate), "-r", str(self.rounds), "--json", "--compare", shlex.join(peer), *self.flags, *flags]
        return json.loads(output(command))


def without_wide_vectors(plinth, cache):
    """A file with the facts of this machine, but for every instruction set beyond AVX2."""
    facts = json.loads(output([plinth, "facts", "--json"]))
    kept = [name for name in facts["host"]["isa"] if not name.startswith(("avx512", "avx_", "avx10", "amx"))]
    facts["host"]["isa"] = kept
    # What was measured here was measured with them.
    facts["costs"] = []
    path = cache / "avx2.json"
    path.write_text(json.dumps(facts))
    return path


def output(command):
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        raise Unavailable(lines[-1].strip() if lines else f"exit code {ran.returncode}")
    return ran.stdout


def pick(report, kind):
    """Ours, theirs and the ratio of one kind of figure: "prefill", "decode", or the number of sequences."""
    if kind in ("prefill", "decode"):
        ours, theirs = report[kind], report["compared"][kind]
    else:
        found = [b for b in report["batches"] if b["sequences"] == kind]
        other = [b for b in report["compared"]["batches"] if b["sequences"] == kind]
        ours, theirs = (found[0]["decode"] if found else None), (other[0]["decode"] if other else None)
    if ours is None or theirs is None:
        raise Unavailable("one of the two has no figure for it")
    return ours, theirs["peer"], theirs["ratio"]


def shares(ours, peer, ours_idle, peer_idle):
    """Shares of an undisturbed speed in percent, and how many times the peer's share ours is."""
    ours = spread([100 * run / ours_idle["median"] for run in ours["runs"]])
    peer = spread([100 * run / peer_idle["median"] for run in peer["runs"]])
    ratio = spread([a / b for a, b in zip(ours["runs"], peer["runs"])])
    return ours, peer, ratio


def in_turns(machine, ours, peer, measure):
    """A figure of which less is better, of two commands in turns."""
    measure(ours), measure(peer)
    pairs = [(measure(ours), measure(peer)) for _ in range(machine.rounds)]
    ratio = spread([b / a for a, b in pairs])
    return spread([a for a, _ in pairs]), spread([b for _, b in pairs]), ratio


def finished(command):
    """Seconds and most resident MiB of a command, from its start to its end."""
    with tempfile.TemporaryFile("w+") as said:
        begin = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            lines = [line for line in said.read().splitlines() if line.strip()]
            raise Unavailable(lines[-1].strip() if lines else f"exit code {child.returncode}")
    return seconds, usage.ru_maxrss / 1024


class Neighbours:
    """Processes that want a CPU each, all the time."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        # Until nobody is left who would end it.
        loop = f"import os\nwhile os.getppid() == {os.getpid()}:\n    for _ in range(10**6): pass"
        self.processes = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(self.count)]

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def llama_rows(m):
    """Groups of rows: (names, what gives their figures). One run serves all rows of a group."""
    smol, billion, gemma = "SmolLM2-135M.{}.gguf", "synthetic-1B.Q4_0.gguf", "gemma-3-270m.Q4_K_M.gguf"

    def speeds(model, prompt, generate, kinds):
        def measure():
            report = m.bench(model, prompt, generate, m.llama_bench(model, prompt, generate))
            return [pick(report, kind) for kind in kinds]
        return measure

    def batches():
        model = smol.format("Q4_1")
        report = m.bench(model, 0, 128, m.llama_batches(model, 128, [8, 32]), "--batch", "8,32")
        return [pick(report, 8), pick(report, 32)]

    def context(model, generate):
        def measure():
            # Up to the end of the model's context.
            depth = 8192 - generate
            near = pick(m.bench(model, 0, generate, m.llama_bench(model, 0, generate)), "decode")
            report = m.bench(model, 0, generate, m.llama_bench(model, 0, generate, depth), "-d", str(depth))
            far = pick(report, "decode")
            return [far, shares(far[0], far[1], near[0], near[1])]
        return measure

    def neighbours():
        model = smol.format("Q4_1")
        # Few tokens: an engine whose threads wait for each other takes a second for one.
        idle = pick(m.bench(model, 0, 16, m.llama_bench(model, 0, 16)), "decode")
        with Neighbours(2):
            busy = pick(m.bench(model, 0, 16, m.llama_bench(model, 0, 16)), "decode")
        return [shares(busy[0], busy[1], idle[0], idle[1])]

    def short_run(model, *flags):
        ours = [m.plinth, "run", m.model(model), "Hello", "-n", "1", "-q", "-t", str(m.threads), *m.flags, *flags]
        peer = [m.llama("llama-bench"), "-m", m.model(model), "-t", str(m.threads), "-p", "0", "-n", "1", "-r", "1",
                "--no-warmup"]
        return ours, peer

    def memory():
        return [in_turns(m, *short_run(billion), lambda command: finished(command)[1])]

    def start(model, *flags):
        return lambda: [in_turns(m, *short_run(model, *flags), lambda command: finished(command)[0])]

    # The run that is not counted packs the weights and writes them.
    pack_cache = f"--pack-cache={m.cache / 'packed'}"

    tokens, percent = "tokens/s", "%"
    return [
        ([("smollm2-q4_1-prefill", "SmolLM2 Q4_1, prefill 512", tokens),
          ("smollm2-q4_1-decode", "SmolLM2 Q4_1, decode 128", tokens)],
         speeds(smol.format("Q4_1"), 512, 128, ["prefill", "decode"])),
        ([("smollm2-q8_0-prefill", "SmolLM2 Q8_0, prefill 512", tokens),
          ("smollm2-q8_0-decode", "SmolLM2 Q8_0, decode 128", tokens)],
         speeds(smol.format("Q8_0"), 512, 128, ["prefill", "decode"])),
        ([("smollm2-q4_0-prefill", "SmolLM2 Q4_0, prefill 512", tokens),
          ("smollm2-q4_0-decode", "SmolLM2 Q4_0, decode 128", tokens)],
         speeds(smol.format("Q4_0"), 512, 128, ["prefill", "decode"])),
        ([("smollm2-bf16-prefill", "SmolLM2 BF16, prefill 512", tokens),
          ("smollm2-bf16-decode", "SmolLM2 BF16, decode 128", tokens)],
         speeds(smol.format("BF16"), 512, 128, ["prefill", "decode"])),
        ([("gemma3-q4_k_m-prefill", "gemma-3-270m Q4_K_M, prefill 512", tokens),
          ("gemma3-q4_k_m-decode", "gemma-3-270m Q4_K_M, decode 128", tokens)],
         speeds(gemma, 512, 128, ["prefill", "decode"])),
        ([("1b-q4_0-prefill", "1.07B Q4_0, prefill 512", tokens), ("1b-q4_0-decode", "1.07B Q4_0, decode 64", tokens)],
         speeds(billion, 512, 64, ["prefill", "decode"])),
        ([("batch-8", "SmolLM2 Q4_1, decode 128 x 8", tokens), ("batch-32", "SmolLM2 Q4_1, decode 128 x 32", tokens)],
         batches),
        ([("context-8192", "SmolLM2 Q4_1, decode at context 8,192", tokens),
          ("context-share", "its share of the speed at context 128", percent)], context(smol.format("Q4_1"), 128)),
        ([("1b-context-8192", "1.07B Q4_0, decode at context 8,192", tokens),
          ("1b-context-share", "its share of the speed at context 64", percent)], context(billion, 64)),
        ([("gemma3-context-8192", "gemma-3-270m Q4_K_M, decode at context 8,192", tokens),
          ("gemma3-context-share", "its share of the speed at context 128", percent)], context(gemma, 128)),
        ([("neighbours", "decode beside two busy processes, share of idle speed", percent)], neighbours),
        ([("memory", "1.07B Q4_0, resident memory (less is better)", "MiB")], memory),
        ([("start", "SmolLM2 Q4_1, start to first token (less is better)", "s")], start(smol.format("Q4_1"))),
        ([("1b-start", "1.07B Q4_0, start to first token (less is better)", "s")], start(billion)),
        ([("start-packed", "SmolLM2 Q4_1, the same with --pack-cache", "s")], start(smol.format("Q4_1"), pack_cache)),
        ([("1b-start-packed", "1.07B Q4_0, the same with --pack-cache", "s")], start(billion, pack_cache)),
    ]


def vllm_rows(m):
    """vLLM reads the weights that it was given as bf16, and plinth the same."""
    folder = "SmolLM2-135M.BF16"

    def speeds():
        peer = m.vllm_bench(folder, "--prompt", "512", "--generate", "128", "--batch", "8,32")
        report = m.bench("SmolLM2-135M.BF16.gguf", 512, 128, peer, "--batch", "8,32")
        return [pick(report, kind) for kind in ("prefill", "decode", 8, 32)]

    return [([("vllm-bf16-prefill", "SmolLM2 BF16, prefill 512", "tokens/s"),
              ("vllm-bf16-decode", "SmolLM2 BF16, decode 128", "tokens/s"),
              ("vllm-batch-8", "SmolLM2 BF16, decode 128 x 8", "tokens/s"),
              ("vllm-batch-32", "SmolLM2 BF16, decode 128 x 32", "tokens/s")], speeds)]


def measured(groups, peer, args):
    for rows, measure in groups:
        if args.only and not any(args.only in key or args.only in work for key, work, _ in rows):
            continue
        print(f"== {', '.join(work for _, work, _ in rows)}", file=sys.stderr)
        try:
            found, why = measure(), None
        except Unavailable as reason:
            found, why = [None] * len(rows), str(reason)
        for (key, work, unit), figures in zip(rows, found):
            row = {"row": key, "work": work, "unit": unit, "peer_name": peer, "target": args.targets.get(key)}
            if figures:
                row["plinth"], row["peer"], row["ratio"] = figures
            else:
                row["reason"] = why
            yield row


def line(row):
    if "reason" in row:
        return f"{row['work']:<54} not measured: {row['reason']}"
    ours, peer, ratio = row["plinth"], row["peer"], row["ratio"]
    digits = 2 if row["unit"] == "s" else 0 if ours["median"] >= 100 else 1
    target = ""
    if row["target"] is not None:
        met = "met" if ratio["median"] >= row["target"] else "missed"
        target = f"   target {row['target']:g}x, {met}"
    return (f"{row['work']:<54}{ours['median']:>9.{digits}f} {peer['median']:>9.{digits}f} {row['unit']:<9}"
            f"{ratio['median']:>6.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}){target}")


def processor(plinth):
    facts = json.loads(output([plinth, "facts", "--json"]))
    return facts["host"]["model"] or facts["host"]["arch"]


def arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--plinth", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--vllm", action="store_true", help="measure vLLM too (first of all flags of run.sh)")
    parser.add_argument("--avx2", action="store_true",
                        help="measure as on a CPU without AVX-512 and AMX (first of all flags of run.sh)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row, of which the median counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of every engine")
    parser.add_argument("--only", metavar="TEXT", help="rows whose name or work holds this text")
    parser.add_argument("--targets", metavar="FILE", help="ratios to reach, a JSON object by name of row")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    args.targets = json.loads(pathlib.Path(args.targets).read_text()) if args.targets else {}
    args.plinth, args.cache = args.plinth.resolve(), args.cache.resolve()
    return args


def main():
    args = arguments()
    machine = Machine(args)
    peers = [("llama.cpp", llama_rows(machine))]
    if args.vllm:
        peers.append(("vLLM", vllm_rows(machine)))
    rows = [row for peer, groups in peers for row in measured(groups, peer, args)]
    name = processor(machine.plinth)
    if args.json:
        json.dump({"processor": name, "threads": args.threads, "rounds": args.rounds, "rows": rows}, sys.stdout, indent=2)
        print()
        return
    name += ", AVX2 alone" if args.avx2 else ""
    print(f"{name}, {args.threads} threads, median of {args.rounds} rounds in turns, ratio with least and most")
    for peer, _ in peers:
        print(f"\n{'':<54}{'plinth':>9} {peer:>9} {'':<9}{'plinth is better by':>7}")
        for row in rows:
            if row["peer_name"] == peer:
                print(line(row))


main()
