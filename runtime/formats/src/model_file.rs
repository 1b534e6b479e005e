//! An opened model, whatever its format: configuration, tensors to read, tokenizer, chat template.

use crate::config::ModelConfig;
use crate::error::{Checked, FormatError, Problem};
use crate::gguf::{self, Gguf};
use crate::huggingface::{self, Folder};
use crate::int4::{self, Parts};
use crate::interleaved::Interleaved;
use crate::tensors::{Place, TensorInfo, Tensors};
use crate::vocabulary::TokenizerSource;
use plinth_kernels::Format;
use plinth_platform::facts::ModelFacts;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Opens a `.gguf` file, or a folder with `config.json`, tokenizer files and `*.safetensors`.
///
/// # Errors
/// Whatever is wrong with it, by file and field. A model that opens has every tensor it needs, in the right shape.
pub fn open(path: &Path) -> Result<ModelFile, FormatError> {
    let metadata =
        std::fs::metadata(path).map_err(|error| Problem::io("open it")(error).at(path))?;
    if metadata.is_dir() {
        huggingface::open(path)
    } else {
        open_gguf(path)
    }
}

/// A model whose header has been read and checked. Its tensors are read on demand.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    config: ModelConfig,
    tensors: Tensors,
    pub(crate) files: Vec<OpenFile>,
    pub(crate) source: Source,
}

/// What only one of the formats has.
#[derive(Debug)]
pub(crate) enum Source {
    Gguf(Box<Gguf>),
    HuggingFace(Box<Folder>),
}

/// A file whose tensors may be read from several threads, one at a time.
#[derive(Debug)]
pub(crate) struct OpenFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl OpenFile {
    pub(crate) fn new(path: PathBuf, file: File) -> Self {
        Self {
            path,
            file: Mutex::new(file),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle of the same file, to read at positions of its own.
    pub(crate) fn handle(&self) -> std::io::Result<File> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.try_clone()
    }
}

fn open_gguf(path: &Path) -> Result<ModelFile, FormatError> {
    let at = |problem: Problem| problem.at(path);
    let file = File::open(path)
        .map_err(Problem::io("open it"))
        .map_err(at)?;
    let len = file
        .metadata()
        .map_err(Problem::io("open it"))
        .map_err(at)?
        .len();
    let mut gguf = gguf::read(&file, len).map_err(at)?;
    let files = vec![OpenFile::new(path.to_owned(), file)];
    let values = |name: &str| match gguf.tensor(name) {
        Some(info) => {
            let mut bytes = Vec::new();
            read_place(&files, info.place, name, &mut bytes)?;
            Ok(Some(dequantize(info, &bytes)))
        }
        None => Ok(None),
    };
    let factors = gguf::Factors {
        plain: values("rope_freqs.weight").map_err(at)?,
        short: values("rope_factors_short.weight").map_err(at)?,
        long: values("rope_factors_long.weight").map_err(at)?,
    };
    let config = gguf::model_config(&gguf, factors).map_err(at)?;
    let tensors = Tensors::new(std::mem::take(&mut gguf.tensors), &config).map_err(at)?;
    let source = Source::Gguf(Box::new(gguf));
    ModelFile::new(path, config, tensors, files, source).map_err(at)
}

impl ModelFile {
    pub(crate) fn new(
        path: &Path,
        config: ModelConfig,
        tensors: Tensors,
        files: Vec<OpenFile>,
        source: Source,
    ) -> Checked<Self> {
        tensors.check(&config)?;
        Ok(Self {
            path: path.to_owned(),
            config,
            tensors,
            files,
            source,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.tensors.list()
    }

    /// The tensor of this name (a GGUF name, whatever the format).
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Reads the bytes of a tensor into `buffer`, whose room is used again. One whose parts lie apart (GPTQ, AWQ) comes
    /// as blocks of its format.
    ///
    /// # Errors
    /// The file can no longer be read, or became shorter since it was opened.
    ///
    /// **Panics** if there is no such tensor: ask [`ModelFile::tensor`] first.
    pub fn read(&self, name: &str, buffer: &mut Vec<u8>) -> Result<&TensorInfo, FormatError> {
        let info = self
            .tensor(name)
            .unwrap_or_else(|| panic!("no tensor '{name}' in '{}'", self.path.display()));
        let read = |place: Place, buffer: &mut Vec<u8>| {
            read_place(&self.files, place, &info.name, buffer)
                .map_err(|problem| problem.at(&self.files[place.file].path))
        };
        if let Some(interleaved) = &info.interleaved {
            let (mut bytes, mut scales) = (Vec::new(), Vec::new());
            read(info.place, &mut bytes)?;
            if let Interleaved::Mxfp4 { scales: place, .. } = interleaved {
                read(*place, &mut scales)?;
            }
            let shape = (info.rows, info.cols);
            interleaved.gather(shape, info.format, (&bytes, &scales), buffer);
            return Ok(info);
        }
        let Some(grouped) = &info.grouped else {
            read(info.place, buffer)?;
            info.add_one(buffer);
            return Ok(info);
        };
        let mut parts = Parts::default();
        read(info.place, &mut parts.weights)?;
        read(grouped.zeros, &mut parts.zeros)?;
        read(grouped.scales, &mut parts.scales)?;
        int4::gather(info, grouped, parts, buffer).map_err(|problem| problem.at(&self.path))?;
        Ok(info)
    }

    /// Reads a whole tensor as numbers.
    ///
    /// # Errors
    /// As [`ModelFile::read`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let mut bytes = Vec::new();
        let info = self.read(name, &mut bytes)?;
        Ok(dequantize(info, &bytes))
    }

    /// Is the output head the embedding?
    pub fn has_tied_head(&self) -> bool {
        self.tensor("output.weight").is_none()
    }

    /// What the tokenizer is made from.
    ///
    /// # Errors
    /// The file has none, or a broken one.
    pub fn tokenizer(&self) -> Result<TokenizerSource, FormatError> {
        match &self.source {
            Source::Gguf(gguf) => gguf::vocabulary(&gguf.metadata)
                .map(TokenizerSource::Gguf)
                .map_err(|problem| problem.at(&self.path)),
            Source::HuggingFace(folder) => folder
                .tokenizer(&self.path)
                .map(TokenizerSource::HuggingFace),
        }
    }

    /// The chat template (Jinja), where the model has one.
    ///
    /// # Errors
    /// It is there, but not as text.
    pub fn chat_template(&self) -> Result<Option<String>, FormatError> {
        match &self.source {
            Source::Gguf(gguf) => {
                let template = gguf.metadata.text("tokenizer.chat_template");
                template
                    .map(|text| text.map(str::to_owned))
                    .map_err(|problem| problem.at(&self.path))
            }
            Source::HuggingFace(folder) => folder.chat_template(&self.path),
        }
    }

    /// The model as far as a hardware decision may depend on it.
    pub fn facts(&self) -> ModelFacts {
        let mut bytes = BTreeMap::new();
        for info in self.tensors.list().iter().filter(|info| info.rows > 1) {
            *bytes.entry(info.format.name()).or_insert(0) += info.bytes();
        }
        let most = bytes
            .iter()
            .max_by_key(|(_, bytes)| **bytes)
            .map_or(Format::F32.name(), |(name, _)| name);
        let quantized = Format::from_name(most).is_some_and(|format| !format.is_float());
        let config = &self.config;
        let window = config
            .sliding_window
            .filter(|&window| window < config.context_length);
        ModelFacts {
            arch: config.architecture.clone(),
            // What is not quantised (norms, biases) is f32 in every quantised file.
            dtype: if quantized { Format::F32.name() } else { most }.to_owned(),
            quantization: quantized.then(|| most.to_owned()),
            weight_bytes: self.tensors.list().iter().map(TensorInfo::bytes).sum(),
            formats: bytes
                .into_iter()
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .collect(),
            head_size: config.head_dim as u32,
            num_heads: config.num_heads as u32,
            num_kv_heads: config.num_kv_heads as u32,
            layers: config.num_layers as u32,
            hidden_size: config.hidden_size as u32,
            intermediate_size: config.experts.map_or(config.intermediate_size, |experts| {
                experts.intermediate_size
            }) as u32,
            vocab_size: config.vocab_size as u32,
            max_len: config.context_length as u32,
            mla: None,
            vision: None,
            hybrid: false,
            state_bytes: None,
            moe: config.experts.is_some(),
            traits: window
                .map(|_| "sliding-window".to_owned())
                .into_iter()
                .chain(config.attention_sinks.then(|| "sinks".to_owned()))
                .chain(config.attention_softcap.map(|_| "soft-cap".to_owned()))
                .collect(),
        }
    }
}

/// Reads the bytes of one place. `name` is the tensor's.
pub(crate) fn read_place(
    files: &[OpenFile],
    place: Place,
    name: &str,
    buffer: &mut Vec<u8>,
) -> Checked<()> {
    buffer.clear();
    // A reader that died while it held the file left no state behind but the position, which is set anew here.
    let mut handle = files[place.file]
        .file
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let action = || format!("read tensor '{name}'");
    handle
        .seek(SeekFrom::Start(place.offset))
        .map_err(Problem::io(action()))?;
    let read = (&*handle)
        .take(place.bytes)
        .read_to_end(buffer)
        .map_err(Problem::io(action()))?;
    if read as u64 == place.bytes {
        return Ok(());
    }
    let expected = format!("{} bytes", place.bytes);
    Err(Problem::field(
        format!("tensor '{name}'"),
        format!("{read} bytes"),
        expected,
    )
    .fix("the file was changed while it was in use"))
}

fn dequantize(info: &TensorInfo, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; info.elements()];
    info.format.dequantize(bytes, &mut values);
    values
}
