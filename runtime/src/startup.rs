//! The composition root: facts, platforms, plan, kernels, model, engine, in this order.

use crate::calibration;
use crate::catalogue;
use crate::cli::{EngineArgs, PlatformArgs, Speculation};
use crate::error::{Failure, Result};
use crate::pack_cache::{self, PackedWeights, Place};
use crate::platforms;
use crate::progress::Progress;
pub use crate::session::Session;
use anyhow::{Context, anyhow};
use plinth_engine::{Engine, EngineHandle, EngineOptions, Loading, Model, ModelError};
use plinth_formats::{ModelFile, Packed, TokenizerSource};
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
    let (engine, packed) = engine(&file, &plan, args, quiet)?;
    let engine = EngineHandle::spawn(engine)
        .context("cannot start the engine's thread")
        .map_err(Failure::Failed)?;
    let mut session = Session::new(&file, plan, text, engine)?;
    session.packed = packed;
    Ok(session)
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

/// Binds the plan's kernels, loads the model, and makes an engine of it. Says what became of the packed weights, if they
/// were to be kept.
pub fn engine(
    file: &ModelFile,
    plan: &Plan,
    args: &EngineArgs,
    quiet: bool,
) -> Result<(Engine, Option<PackedWeights>)> {
    let loader = Loader {
        file,
        plan,
        options: options(plan)?,
        quiet,
    };
    let (model, packed) = match &args.pack_cache {
        None => (loader.load("packing weights", Packed::Pack)?, None),
        Some(folder) => {
            let (model, packed) = loader.load_cached(folder.as_deref())?;
            (model, Some(packed))
        }
    };
    let model = model.map_err(Failure::failed)?;
    let engine = Engine::new(model, loader.options).map_err(Failure::failed)?;
    Ok((engine, packed))
}

/// What a model is loaded by.
struct Loader<'a> {
    file: &'a ModelFile,
    plan: &'a Plan,
    options: EngineOptions,
    quiet: bool,
}

impl Loader<'_> {
    fn load(&self, what: &'static str, packed: Packed<'_>) -> Result<Loaded> {
        let kernels = KernelSet::bind(&selection(&self.plan.kernels))
            .context("the plan is for another machine than this one")
            .map_err(Failure::Refused)?;
        let progress = Progress::bytes(what, self.quiet);
        let loading = Loading {
            max_model_len: self.options.max_model_len,
            max_batched_tokens: self.options.max_batched_tokens,
            packed,
            progress: &|done, total| progress.set(done, total),
        };
        Ok(Model::load(self.file, kernels, self.workers()?, loading))
    }

    /// From the packed weights of an earlier start, or, if there are none, as without them and for a later start.
    fn load_cached(&self, folder: Option<&Path>) -> Result<(Loaded, PackedWeights)> {
        let workers = self.workers()?;
        let place = pack_cache::folder(folder)
            .and_then(|folder| Place::of(&folder, self.file, &workers, self.quiet));
        let place = match place {
            Ok(place) => place,
            Err(because) => return self.load_without(because),
        };
        let because = match place.find(&workers) {
            Ok(Some(found)) => match self.load("loading packed weights", Packed::Read(&found))? {
                Err(ModelError::Packed(error)) => Some(error.to_string()),
                loaded => return Ok((loaded, place.used(self.file, &found))),
            },
            Ok(None) => None,
            Err(because) => Some(because),
        };
        let mut writer = match place.create() {
            Ok(writer) => writer,
            Err(because) => return self.load_without(because),
        };
        let loaded = self.load("packing weights", Packed::Write(&mut writer))?;
        if loaded.is_err() {
            let because = "the model cannot be loaded".to_owned();
            return Ok((loaded, PackedWeights::NotUsed { because }));
        }
        let packed = match place.finish(self.file, writer, &workers) {
            Ok(bytes) => place.written(bytes, because),
            Err(because) => PackedWeights::NotUsed { because },
        };
        Ok((loaded, packed))
    }

    fn load_without(&self, because: String) -> Result<(Loaded, PackedWeights)> {
        let loaded = self.load("packing weights", Packed::Pack)?;
        Ok((loaded, PackedWeights::NotUsed { because }))
    }

    fn workers(&self) -> Result<Workers> {
        let ThreadChoice {
            workers,
            cpus,
            nodes,
        } = &self.plan.threads;
        let workers = Workers::by_node(*workers as usize, cpus, nodes);
        workers.map_err(|error| match error.kind() {
            // A thread cannot be put on a CPU that is not there.
            ErrorKind::InvalidInput => {
                let context = "the plan is for another machine than this one: it pins threads to CPUs that are not there";
                Failure::Refused(anyhow::Error::new(error).context(context))
            }
            _ => Failure::Failed(anyhow::Error::new(error).context("cannot start the worker threads")),
        })
    }
}

/// A model, or why there is none.
type Loaded = std::result::Result<Model, ModelError>;

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
