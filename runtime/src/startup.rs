//! The composition root: facts, platforms, plan, kernels, model, engine, in this order.

use crate::calibration;
use crate::catalogue;
use crate::cli::{EngineArgs, PlatformArgs, Speculation};
use crate::error::{Failure, Result};
use crate::platforms;
use crate::progress::Progress;
pub use crate::session::Session;
use anyhow::{Context, anyhow};
use plinth_engine::{Engine, EngineHandle, EngineOptions, Model};
use plinth_formats::{ModelFile, TokenizerSource};
use plinth_kernels::detect::{Source, detect};
use plinth_kernels::{KernelSet, KvDtype, Selection, Workers};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::plan::{KernelChoices, Plan, ThreadChoice};
use plinth_platform::policy::EngineConfig;
use plinth_platform::resolve::{Wishes, resolve};
use plinth_text::{Algorithm, Tokenizer, Vocabulary};
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// Starts everything that answers prompts.
pub fn start(model: &Path, args: &EngineArgs, quiet: bool) -> Result<Session> {
    let file = open(model)?;
    let plan = plan(&file, args)?;
    let text = Arc::new(tokenizer_of(&file)?);
    let engine = EngineHandle::spawn(engine(&file, &plan, quiet)?)
        .context("cannot start the engine's thread")
        .map_err(Failure::Failed)?;
    Session::new(&file, plan, text, engine)
}

/// The facts of this machine, or of the one in a file.
pub fn facts(file: Option<&Path>) -> Result<Arc<Facts>> {
    let mut facts = bare_facts(file)?;
    catalogue::own(&mut facts);
    Ok(Arc::new(facts))
}

/// The same, to choose from a catalogue: `plinth`, that of another engine, or one in a file.
pub fn facts_of(file: Option<&Path>, catalogue: Option<&str>) -> Result<Arc<Facts>> {
    let mut facts = bare_facts(file)?;
    match catalogue {
        Some(name) => catalogue::apply(&mut facts, name)?,
        None => catalogue::own(&mut facts),
    }
    Ok(Arc::new(facts))
}

fn bare_facts(file: Option<&Path>) -> Result<Facts> {
    match file {
        None => {
            let mut facts = detect(&Source::this_machine());
            facts.costs = calibration::costs(&facts);
            Ok(facts)
        }
        Some(path) => read_json(path, "facts"),
    }
}

/// The facts of a model: of its file, or as a file ending in `.json` gives them.
pub fn model_of(path: &Path) -> Result<ModelFacts> {
    match path.extension().is_some_and(|ending| ending == "json") {
        true => model_facts(path),
        false => Ok(open(path)?.facts()),
    }
}

/// Reads the facts of a model from a file, in place of the model.
pub fn model_facts(path: &Path) -> Result<ModelFacts> {
    read_json(path, "facts of a model")
}

fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    let shown = path.display();
    let text = std::fs::read(path)
        .with_context(|| format!("cannot read '{shown}'"))
        .map_err(Failure::Input)?;
    let reader = &mut serde_json::Deserializer::from_slice(&text);
    serde_path_to_error::deserialize(reader)
        .with_context(|| format!("'{shown}' does not hold {what}"))
        .map_err(Failure::Input)
}

/// Opens a model file.
pub fn open(model: &Path) -> Result<ModelFile> {
    plinth_formats::open(model).map_err(Failure::input)
}

/// The tokenizer of a model file.
pub fn tokenizer(model: &Path) -> Result<Tokenizer> {
    tokenizer_of(&open(model)?)
}

fn tokenizer_of(file: &ModelFile) -> Result<Tokenizer> {
    let made = match file.tokenizer().map_err(Failure::input)? {
        TokenizerSource::Gguf(vocab) => Tokenizer::from_vocabulary(Vocabulary {
            model: if vocab.model == "llama" {
                Algorithm::SentencePiece
            } else {
                Algorithm::Bpe
            },
            pre: vocab.pre,
            tokens: vocab.tokens,
            scores: vocab.scores,
            types: vocab.types,
            merges: vocab.merges,
            bos: vocab.bos,
            eos: vocab.eos,
            unk: vocab.unk,
            eot: vocab.eot,
            add_bos: vocab.add_bos,
            add_eos: vocab.add_eos,
            add_space_prefix: vocab.add_space_prefix,
        }),
        TokenizerSource::HuggingFace(source) => {
            let path = &source.tokenizer_json;
            let json =
                std::fs::read(path).with_context(|| format!("cannot read '{}'", path.display()));
            Tokenizer::from_huggingface(
                &json.map_err(Failure::Input)?,
                source.config.as_ref(),
                &source.eos_ids,
            )
        }
    };
    made.with_context(|| format!("'{}': its tokenizer", file.path().display()))
        .map_err(Failure::Input)
}

/// Resolves the plan for a model.
pub fn plan(file: &ModelFile, args: &EngineArgs) -> Result<Plan> {
    let facts = facts(args.platform.facts.as_deref())?;
    plan_for(&facts, &file.facts(), args)
}

/// Resolves the plan for facts.
pub fn plan_for(facts: &Arc<Facts>, model: &ModelFacts, args: &EngineArgs) -> Result<Plan> {
    let mut registry = platforms::registry(&args.platform)?;
    let wishes = wishes(args);
    resolve(&mut registry, facts, model, &wishes).map_err(Failure::refused)
}

/// What the flags ask for.
pub fn wishes(args: &EngineArgs) -> Wishes {
    let EngineArgs {
        platform:
            PlatformArgs {
                platform,
                strict,
                allow_overrides,
                ..
            },
        ..
    } = args;
    let mut config = EngineConfig::default();
    let mut user_set = Vec::new();
    let mut set = |path: &str| user_set.push(path.to_owned());
    macro_rules! take {
        ($($wish:expr => $field:ident, $path:literal;)*) => {
            $(if let Some(value) = $wish.clone() {
                config.$field = value.into();
                set($path);
            })*
        };
    }
    take! {
        args.threads => threads, "threads";
        args.max_model_len => max_model_len, "max-model-len";
        args.max_num_seqs => max_num_seqs, "max-num-seqs";
        args.max_num_batched_tokens => max_batched_tokens, "max-batched-tokens";
        args.block_size => block_size, "block-size";
        args.dtype => dtype, "dtype";
        args.kv_dtype => kv_dtype, "kv-dtype";
        args.kv_cache_memory => kv_bytes, "kv-bytes";
        args.memory_utilization => memory_utilization, "memory-utilization";
        args.attention_kernel => attention_backend, "attention-backend";
        args.tensor_parallel => tensor_parallel, "tensor-parallel";
        args.speculate.map(Speculation::spec_tokens) => spec_tokens, "spec-tokens";
        args.no_prefix_caching.then_some(false) => prefix_caching, "prefix-caching";
        args.no_chunked_prefill.then_some(false) => chunked_prefill, "chunked-prefill";
    }
    config.user_set = user_set;
    Wishes {
        platform: platform.clone(),
        config,
        strict: *strict,
        allow_overrides: *allow_overrides,
        env: std::env::vars().collect(),
    }
}

/// Binds the plan's kernels, loads the model, and makes an engine of it.
pub fn engine(file: &ModelFile, plan: &Plan, quiet: bool) -> Result<Engine> {
    let kernels = KernelSet::bind(&selection(&plan.kernels))
        .context("the plan is for another machine than this one")
        .map_err(Failure::Refused)?;
    let ThreadChoice {
        workers,
        cpus,
        nodes,
    } = &plan.threads;
    let workers = Workers::by_node(*workers as usize, cpus, nodes);
    let workers = workers.map_err(|error| match error.kind() {
        // A thread cannot be put on a CPU that is not there.
        ErrorKind::InvalidInput => {
            let context = "the plan is for another machine than this one: it pins threads to CPUs that are not there";
            Failure::Refused(anyhow::Error::new(error).context(context))
        }
        _ => Failure::Failed(anyhow::Error::new(error).context("cannot start the worker threads")),
    })?;
    let options = options(plan)?;
    let progress = Progress::bytes("packing weights", quiet);
    let model = Model::load(
        file,
        kernels,
        workers,
        options.max_model_len,
        options.max_batched_tokens,
        &|done, total| progress.set(done, total),
    );
    drop(progress);
    Engine::new(model.map_err(Failure::failed)?, options).map_err(Failure::failed)
}

fn selection(choices: &KernelChoices) -> Selection {
    let KernelChoices {
        attention_prefill,
        attention_decode,
        matmul,
        matmul_many,
        many_from,
        elementwise,
    } = choices.clone();
    let many_from = many_from.into_iter();
    Selection {
        attention_prefill,
        attention_decode,
        matmul,
        matmul_many,
        many_from: many_from
            .map(|(format, rows)| (format, rows as usize))
            .collect(),
        elementwise,
    }
}

fn options(plan: &Plan) -> Result<EngineOptions> {
    let config = &plan.engine;
    let kv_dtype = KvDtype::from_name(&config.kv_dtype);
    let kv_dtype = kv_dtype
        .ok_or_else(|| anyhow!("kv-dtype: '{}' has no cache in this build", config.kv_dtype));
    Ok(EngineOptions {
        block_size: config.block_size as usize,
        num_blocks: plan.memory.num_blocks as usize,
        kv_dtype: kv_dtype.map_err(Failure::Refused)?,
        max_model_len: config.max_model_len as usize,
        max_num_seqs: config.max_num_seqs as usize,
        // A step never carries more than all sequences at full length.
        max_batched_tokens: (config.max_batched_tokens as usize)
            .min(config.max_num_seqs as usize * config.max_model_len as usize),
        chunked_prefill: config.chunked_prefill,
        prefix_caching: config.prefix_caching,
        max_draft: config.spec_tokens as usize,
    })
}
