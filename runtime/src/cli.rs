//! What the user wrote: the command line as data, with the help that teaches it. Nothing here acts.

#![allow(
    missing_docs,
    reason = "a field's documentation is its help, and some fields take theirs from elsewhere"
)]

mod engine_args;
mod sampling_args;

pub use engine_args::{EngineArgs, PlatformArgs, Speculation};
pub use sampling_args::SamplingArgs;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The `plinth` command line.
#[derive(Debug, Parser)]
#[command(
    name = "plinth",
    version,
    about = "Runs language models, and says why it runs them the way it does",
    long_about = "Runs language models on CPUs. Which kernels, dtypes and limits are used is decided by a platform: a \
                  sandboxed WebAssembly component that sees facts about the machine and returns decisions. The host \
                  checks each of them and freezes them into one plan.",
    after_long_help = EXAMPLES,
    max_term_width = 110,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  plinth run model.gguf \"Why is the sky blue?\"     answer one prompt
  plinth run model.gguf                            chat, in a terminal
  plinth plan model.gguf                           what would run here, and why
  plinth plan model.gguf --facts h100.json         the same for a machine that is not here
  plinth batch model.gguf requests.jsonl           many prompts, scheduled together
  plinth bench model.gguf -p 512 -n 128            tokens per second
  plinth doctor                                    is this machine set up well?

Exit codes: 0 done · 1 failed while running · 2 wrong input (flags, files, a line of a batch) ·
3 the plan was refused (a wish that cannot be had, a model that does not fit)";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a prompt, or chat
    Run(RunArgs),
    /// Answer many requests from a JSONL file, all scheduled together
    Batch(BatchArgs),
    /// Show what would run here, and why
    Plan(PlanArgs),
    /// Show what was measured of this machine
    Facts(FactsArgs),
    /// Probe everything, and say what to fix
    Doctor(DoctorArgs),
    /// Turn text into token ids
    Tokenize(TokenizeArgs),
    /// Turn token ids into text
    Detokenize(DetokenizeArgs),
    /// Measure the perplexity of a model on a text
    Perplexity(PerplexityArgs),
    /// Measure tokens per second
    Bench(BenchArgs),
    /// Measure what this machine reaches, and what each matrix product costs
    Calibrate(CalibrateArgs),
    /// Write a model in another type or file format
    Convert(ConvertArgs),
    /// Write a model of any size with random weights, to measure speed
    Synthetic(SyntheticArgs),
    /// Look at platform plugins
    Plugin(PluginArgs),
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

const MODEL_HELP: &str =
    "A .gguf file, or a folder with config.json, tokenizer.json and *.safetensors";

/// `plinth run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth run model.gguf \"Name three rivers.\" --max-tokens 60
  plinth run model.gguf --raw \"The capital of France is\" --temperature 0
  echo \"Summarise: …\" | plinth run model.gguf --system \"Answer in one sentence.\"
  plinth run model.gguf                    # chat: /help lists what can be typed")]
pub struct RunArgs {
    #[arg(help = MODEL_HELP)]
    pub model: PathBuf,
    /// What to answer; without it standard input is read, or in a terminal a chat begins
    pub prompt: Option<String>,
    /// Put the prompt into the model's chat template (the default where the model has one)
    #[arg(long, conflicts_with = "raw")]
    pub chat: bool,
    /// Continue the prompt as it is; special tokens in it are parsed
    #[arg(long)]
    pub raw: bool,
    /// System message of the chat
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Let special tokens inside a message's text act as such, as other engines do: a message can then forge a turn
    #[arg(long)]
    pub trust_content: bool,
    /// Do not print the line with platform, kernels and speed
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `plinth batch`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
One request a line. It must have one of
  prompt        text, in which special tokens are parsed
  prompt_ids    token ids
  messages      [{\"role\": \"user\", \"content\": \"…\"}, …], put into the chat template
and may have
  id, max_tokens, min_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
  frequency_penalty, logit_bias ({\"ID\": number}), seed, stop (a text or a list), stop_ids, ignore_eos,
  logprobs (alternatives a token; 0 for the chosen token only)

One result a line, in the order of the requests:
  id, ids, text, finish_reason, logprobs (a token: id, logprob, top), usage
A line that is wrong gets {\"id\", \"line\", \"error\"} in its place; the others still run, and the exit code is 2.

Examples:
  echo '{\"prompt\": \"The capital of France is\", \"max_tokens\": 8}' | plinth batch model.gguf -
  plinth batch model.gguf requests.jsonl -o results.jsonl")]
pub struct BatchArgs {
    #[arg(help = MODEL_HELP)]
    pub model: PathBuf,
    /// The requests, one JSON object a line; - for standard input
    pub file: PathBuf,
    /// Where the results go; standard output if absent
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Let special tokens inside a message's text act as such, as other engines do
    #[arg(long)]
    pub trust_content: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `plinth plan`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  plinth plan model.gguf
  plinth plan model.gguf --facts tests/facts/h100-box.json
  plinth plan model.gguf --plugin vendor.wasm --json
  plinth plan --model-facts llama-70b.json --facts h100.json --catalogue vllm-0.22.1    what vLLM would run there
  plinth plan --fleet machines/ --model llama-70b.json --model small.gguf --html fleet.html
  plinth plan model.gguf --diff a100.json h100.json
  plinth plan model.gguf --why attention.decode
  plinth plan model.gguf --facts h100.json --what-if devices.capability=8.0
  plinth plan model.gguf --record plan.json; plinth plugin replay plan.json --plugin next-version.wasm")]
pub struct PlanArgs {
    #[arg(help = MODEL_HELP, required_unless_present_any = ["model_facts", "more_models", "diff"])]
    pub model: Option<PathBuf>,
    /// Plan for the model in this file of facts, of which no weights need be here
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub model_facts: Option<PathBuf>,
    /// Choose from these kernels: plinth (the default), vllm-0.22.1 (its build for the machine's devices), one build of
    /// it (vllm-0.22.1/cuda, /rocm, /xpu, /tpu, /gaudi, /cpu), or those in a file
    #[arg(long, value_name = "NAME")]
    pub catalogue: Option<String>,
    /// A model, or a file of facts of one; with --fleet it may be given several times
    #[arg(long = "model", value_name = "MODEL")]
    pub more_models: Vec<PathBuf>,
    /// One table over all machines whose facts lie in this folder
    #[arg(long, value_name = "DIR", help_heading = "Foresight")]
    pub fleet: Option<PathBuf>,
    /// With --fleet: print comma-separated values
    #[arg(long, requires = "fleet", help_heading = "Foresight")]
    pub csv: bool,
    /// With --fleet: write a page that sorts and filters, to look at in a browser and to send
    #[arg(
        long,
        value_name = "FILE",
        requires = "fleet",
        help_heading = "Foresight"
    )]
    pub html: Option<PathBuf>,
    /// What changes from A to B, and because of which fact: two files of facts, two platform components, two models, or
    /// two recordings
    #[arg(long, num_args = 2, value_names = ["A", "B"], help_heading = "Foresight", conflicts_with = "fleet")]
    pub diff: Option<Vec<PathBuf>>,
    /// The chain from facts to one decision, such as attention.decode
    #[arg(long, value_name = "PATH", help_heading = "Foresight", conflicts_with_all = ["fleet", "diff"])]
    pub why: Option<String>,
    /// What would change with this fact, such as devices.capability=8.0, host.isa=-avx512f or packages=+aiter; without a
    /// value, where along its known values decisions change
    #[arg(long, value_name = "FACT[=VALUE]", help_heading = "Foresight", conflicts_with_all = ["fleet", "diff", "why"])]
    pub what_if: Option<String>,
    /// Write facts, questions and answers to a file, for `plinth plugin replay`
    #[arg(long, value_name = "FILE", help_heading = "Foresight", conflicts_with_all = ["fleet", "diff", "why", "what_if"])]
    pub record: Option<PathBuf>,
    /// Print the whole plan as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `plinth facts`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth facts
  plinth facts --json > machine.json      # to plan for this machine elsewhere, with --facts machine.json")]
pub struct FactsArgs {
    /// Print them as JSON: what --facts reads
    #[arg(long)]
    pub json: bool,
    /// Read them from a file instead of this machine
    #[arg(long, value_name = "FILE")]
    pub facts: Option<PathBuf>,
}

/// `plinth doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth doctor
  plinth doctor model.gguf --plugin vendor.wasm --json")]
pub struct DoctorArgs {
    /// Also open this model and plan it
    pub model: Option<PathBuf>,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub platform: PlatformArgs,
}

/// `plinth tokenize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth tokenize model.gguf \"Hello world\"
  echo '[\"one\", \"two\"]' | plinth tokenize model.gguf --json")]
pub struct TokenizeArgs {
    #[arg(help = MODEL_HELP)]
    pub model: PathBuf,
    /// The text; standard input if absent
    pub text: Option<String>,
    /// Read a JSON list of texts from standard input, write a JSON list of {"ids", "pieces"}
    #[arg(long, conflicts_with = "text")]
    pub json: bool,
    /// Parse special tokens that are written out in the text
    #[arg(long)]
    pub special: bool,
}

/// `plinth detokenize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth detokenize model.gguf 19556 905
  echo '[[19556, 905]]' | plinth detokenize model.gguf --json")]
pub struct DetokenizeArgs {
    #[arg(help = MODEL_HELP)]
    pub model: PathBuf,
    /// Token ids
    pub ids: Vec<u32>,
    /// Read a JSON list of lists of ids from standard input, write a JSON list of texts
    #[arg(long, conflicts_with = "ids")]
    pub json: bool,
    /// Leave special tokens out of the text
    #[arg(long)]
    pub skip_special: bool,
}

/// `plinth perplexity`.
#[derive(Debug, Args)]
#[command(
    long_about = "Measure the perplexity of a model on a text, by llama.cpp's method: the text in windows of \
                        --context tokens that do not overlap, a short last one dropped; of each window the tokens of \
                        the second half are scored, given all before them."
)]
#[command(after_help = "\
The method of llama.cpp: windows that do not overlap, and in each the positions from the middle on are scored (of 512:
257 to 511).

Examples:
  plinth perplexity model.gguf --file text.txt
  plinth perplexity model.gguf --file text.txt --context 512 --json")]
pub struct PerplexityArgs {
    #[arg(help = MODEL_HELP)]
    pub model: PathBuf,
    /// The text
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens in a window
    #[arg(long, default_value_t = 512)]
    pub context: u32,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `plinth bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth bench model.gguf
  plinth bench model.gguf -p 512 -n 128 -r 5 -t 2 --json
  plinth bench model.gguf --batch 1,8,32
  plinth bench model.gguf --roofline --svg roofline.svg
  plinth bench model.gguf --compare 'llama-bench -m model.gguf -t 2 -r 1 -o json'
  plinth bench model.gguf --compare 'other/plinth bench model.gguf -r 1 --json'")]
pub struct BenchArgs {
    #[arg(help = MODEL_HELP)]
    pub model: PathBuf,
    /// Tokens of the prompt in the prefill runs; 0 leaves them out
    #[arg(short = 'p', long, default_value_t = 512)]
    pub prompt_tokens: u32,
    /// Tokens generated in the decode runs; 0 leaves them out
    #[arg(short = 'n', long, default_value_t = 128)]
    pub generate: u32,
    /// Runs of each, after one that is not counted
    #[arg(short = 'r', long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Tokens of context before the first that is generated in the decode runs
    #[arg(
        short = 'd',
        long,
        value_name = "N",
        default_value_t = 0,
        conflicts_with = "batch"
    )]
    pub depth: u32,
    /// Run this command in turns with our own runs, and print how many times as fast we are. It prints what
    /// llama-bench does with -o json, or llama-batched-bench with --output-format jsonl, or a JSON object with
    /// prefill_tokens_per_second and decode_tokens_per_second
    #[arg(long, value_name = "COMMAND")]
    pub compare: Option<String>,
    /// Instead, tell where the time of a step goes: each class of operations with its bytes, its arithmetic, and how
    /// near it comes to what this machine reaches (see calibrate)
    #[arg(long, conflicts_with = "compare")]
    pub roofline: bool,
    /// With --roofline, also draw it
    #[arg(long, value_name = "FILE", requires = "roofline")]
    pub svg: Option<PathBuf>,
    /// Also decode this many sequences at once
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Vec<u32>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `plinth calibrate`.
#[derive(Debug, Args)]
#[command(
    long_about = "Measure this machine, in a few seconds: its clock, the arithmetic of each instruction set, reading \
                  from each cache and from memory, handing work to threads, and every matrix product that it can run. \
                  What was measured is kept for the next time, until the processor or the kernels change."
)]
#[command(after_help = "\
Examples:
  plinth calibrate
  plinth calibrate --again --json > machine-costs.json")]
pub struct CalibrateArgs {
    /// Worker threads; as many as this machine's facts say if absent
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Measure anew, even if it was measured before
    #[arg(long)]
    pub again: bool,
    /// Take a second, for sizes only; nothing is kept
    #[arg(long)]
    pub quick: bool,
    /// Print all that was measured as JSON
    #[arg(long)]
    pub json: bool,
}

/// `plinth convert`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  plinth convert model.Q4_1.gguf model.F32.gguf --type f32
  plinth convert model.gguf folder/ --type bf16      # a Hugging Face folder with safetensors
  plinth convert folder/ model.gguf --type q8_0")]
pub struct ConvertArgs {
    #[arg(help = MODEL_HELP)]
    pub input: PathBuf,
    /// A .gguf file to write, or else a folder for safetensors (float types)
    pub output: PathBuf,
    /// Type of the weights
    #[arg(long = "type", value_name = "TYPE")]
    pub target: WeightType,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// No progress bar
    #[arg(short, long)]
    pub quiet: bool,
}

/// `plinth synthetic`.
#[derive(Debug, Args)]
#[command(
    long_about = "Write a Llama-family model with seeded random weights: right in every shape, senseless in what it \
                  says. It measures the speed of a size that no file at hand has. Without other flags it is a model \
                  of 1.07 billion weights."
)]
#[command(after_help = "\
Examples:
  plinth synthetic 1b.gguf --vocabulary model.gguf --type q4_0
  plinth synthetic wide.gguf --vocabulary model.gguf --type q8_0 --layers 4 --hidden-size 4096 --feed-forward-size 14336")]
pub struct SyntheticArgs {
    /// The .gguf file to write
    pub output: PathBuf,
    /// Take the tokenizer of this .gguf file
    #[arg(long, value_name = "MODEL")]
    pub vocabulary: PathBuf,
    /// Type of the weights
    #[arg(long = "type", value_name = "TYPE")]
    pub target: WeightType,
    /// Layers
    #[arg(long, value_name = "N", default_value_t = 22)]
    pub layers: usize,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub hidden_size: usize,
    /// Width of the feed-forward part
    #[arg(long, value_name = "N", default_value_t = 5632)]
    pub feed_forward_size: usize,
    /// Query heads, which share the width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub heads: u32,
    /// Key/value heads
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub kv_heads: usize,
    /// Longest context, in tokens
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub context: usize,
    /// Give the output head weights of its own, instead of the embedding's
    #[arg(long)]
    pub untied: bool,
    /// Seed of the weights: the same flags give the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// No progress bar
    #[arg(short, long)]
    pub quiet: bool,
}

/// Types that `convert` and `synthetic` write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types, reason = "the names are the formats' own")]
pub enum WeightType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
}

/// `plinth plugin`.
#[derive(Debug, Args)]
pub struct PluginArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PluginCommand,
}

/// The verbs of `plinth plugin`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the platforms, where each came from, and what it says of this machine
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        platform: PlatformArgs,
    },
    /// Show a component: who it says it is, its interface, imports, size and digest
    Inspect {
        /// A component file, or the id of a built-in platform
        plugin: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask one platform one question
    #[command(after_help = "\
Examples:
  plinth plugin decide cpu probe
  plinth plugin decide vendor.wasm select-attention --model model.gguf --facts machine.json
  plinth plugin decide cpu kernel-priority --input '{\"format\": \"q4_1\", \"n\": 576}'

The answer comes with the question in full: any of its fields may be given in --input.")]
    Decide {
        /// A component file, or the id of a built-in platform
        plugin: String,
        /// The question, such as probe or select-attention
        question: String,
        /// Fields of the question that differ from the defaults, as a JSON object
        #[arg(long, value_name = "JSON")]
        input: Option<String>,
        /// The model that the question is about
        #[arg(long, value_name = "MODEL")]
        model: Option<PathBuf>,
        /// Facts from a file instead of this machine's
        #[arg(long, value_name = "FILE")]
        facts: Option<PathBuf>,
        /// Kernels to choose from, as for `plinth plan`
        #[arg(long, value_name = "NAME")]
        catalogue: Option<String>,
    },
    /// Test a platform on every machine of the library: is it total, pure, stable and without contradiction?
    #[command(after_help = "\
Examples:
  plinth plugin test vendor.wasm
  plinth plugin test cpu --facts-dir my-machines/

Exits with 0 only if no fault was found.")]
    Test {
        /// A component file, or the id of a built-in platform
        plugin: String,
        /// Machines whose facts lie in this folder, instead of those in this binary
        #[arg(long, value_name = "DIR")]
        facts_dir: Option<PathBuf>,
        /// Print the counts and the faults as JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask platforms what was recorded, and compare every answer
    #[command(after_help = "\
Examples:
  plinth plugin replay --vectors decisions.jsonl.gz                  vLLM's recorded decisions, by the built-in platforms
  plinth plugin replay --vectors decisions.jsonl.gz --plugin vendor.wasm --show-mismatches 5
  plinth plugin replay plan.json --plugin next-version.wasm          what `plinth plan --record plan.json` wrote down

Exits with 0 only if all answers are equal, and with 1 if one is not.")]
    Replay {
        /// A plan that `plinth plan --record` wrote down
        #[arg(required_unless_present = "vectors", conflicts_with = "vectors")]
        recording: Option<PathBuf>,
        /// Decisions of vLLM, one a line: {"kind", "in", "out"}; may be compressed by gzip
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
        /// Ask this platform alone: a component file, or the id of a built-in one
        #[arg(long, value_name = "PLUGIN")]
        plugin: Option<String>,
        /// Show this many of the answers that differ
        #[arg(long, value_name = "N", default_value_t = 3)]
        show_mismatches: usize,
        /// Print the counts, and what differs, as JSON
        #[arg(long)]
        json: bool,
    },
}
