//! Hugging Face folders: `config.json`, tokenizer files, `*.safetensors`.

mod assemble;
mod config_json;
mod gpt_oss;
pub(crate) mod names;
mod quantization;
mod safetensors;

pub(crate) use quantization::FIELD as QUANTIZATION;

use crate::error::{Checked, FormatError, Problem};
use crate::model_file::{ModelFile, OpenFile, Source, read_place};
use crate::tensors::{TensorInfo, Tensors};
use crate::vocabulary::HuggingFaceTokenizer;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The JSON files beside the tensors.
#[derive(Debug)]
pub(crate) struct Folder {
    pub config: Value,
    generation: Option<Value>,
    pub tokenizer_config: Option<Value>,
}

/// Opens a folder.
pub(crate) fn open(folder: &Path) -> Result<ModelFile, FormatError> {
    let config_path = folder.join("config.json");
    let config_json = read_json(&config_path)?.ok_or_else(|| {
        Problem::field("config.json", "none", "the model's configuration")
            .fix(
                "give a .gguf file, or a folder with config.json, tokenizer.json and *.safetensors",
            )
            .at(folder)
    })?;
    let in_config = |problem: Problem| problem.at(&config_path);
    let config = config_json::model_config(&config_json).map_err(in_config)?;
    let less_one = config_json::norms_are_less_one(&config_json).map_err(in_config)?;
    let weights = safetensors::files(folder)?;
    let mut files = Vec::new();
    let mut entries = Vec::new();
    for (n, path) in weights.iter().enumerate() {
        let file = File::open(path).map_err(|error| Problem::io("open it")(error).at(path))?;
        let read = safetensors::read(&file, n, config.post_norms);
        entries.extend(read.map_err(|problem| problem.at(path))?);
        files.push(OpenFile::new(path.clone(), file));
    }
    let quantization = quantization::read(&config_json).map_err(in_config)?;
    let read = |entry: &safetensors::Entry| {
        let mut bytes = Vec::new();
        read_place(&files, entry.place, &entry.name, &mut bytes)?;
        Ok(bytes)
    };
    let is_gpt_oss = config.architecture == "gpt-oss";
    let (experts, entries): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|entry| is_gpt_oss && gpt_oss::is_of_experts(entry));
    let at = |problem: Problem| problem.at(folder);
    let mut tensors = assemble::tensors(entries, quantization, &read).map_err(at)?;
    tensors.extend(gpt_oss::tensors(experts, &config).map_err(at)?);
    if less_one {
        let is_norm = |info: &TensorInfo| info.name.ends_with("norm.weight");
        let plus_one = |info: TensorInfo| {
            if is_norm(&info) {
                info.plus_one()
            } else {
                info
            }
        };
        tensors = tensors.into_iter().map(plus_one).collect();
    }
    let tied = config_json::is_tied(&config_json).map_err(in_config)?;
    if tied {
        // Some writers store the embedding a second time as the head. The configuration says that it is the same.
        tensors.retain(|info| info.name != "output.weight");
    }
    let has_head = tensors.iter().any(|info| info.name == "output.weight");
    if !tied && !has_head {
        let problem = Problem::field("tensor 'lm_head.weight'", "none", "the output head")
            .fix("set tie_word_embeddings in config.json if the model has none of its own");
        return Err(problem.at(folder));
    }
    let source = Folder {
        config: config_json,
        generation: read_json(&folder.join("generation_config.json"))?,
        tokenizer_config: read_json(&folder.join("tokenizer_config.json"))?,
    };
    Tensors::new(tensors, &config)
        .and_then(|tensors| {
            ModelFile::new(
                folder,
                config,
                tensors,
                files,
                Source::HuggingFace(Box::new(source)),
            )
        })
        .map_err(|problem| problem.at(folder))
}

impl Folder {
    pub(crate) fn tokenizer(&self, folder: &Path) -> Result<HuggingFaceTokenizer, FormatError> {
        let tokenizer_json = folder.join("tokenizer.json");
        if !tokenizer_json.is_file() {
            let problem = Problem::field("tokenizer.json", "none", "the tokenizer");
            return Err(problem
                .fix("take tokenizer.json from where the model came from")
                .at(folder));
        }
        let eos_ids = self.eos_ids().map_err(|problem| problem.at(folder))?;
        Ok(HuggingFaceTokenizer {
            tokenizer_json,
            config: self.tokenizer_config.clone(),
            eos_ids,
        })
    }

    /// Ids that end an answer: one or a list, in either file.
    pub(crate) fn eos_ids(&self) -> Checked<Vec<u32>> {
        let mut ids = Vec::new();
        for (file, value) in [
            ("config.json", Some(&self.config)),
            ("generation_config.json", self.generation.as_ref()),
        ] {
            let Some(value) = value.and_then(|value| value.get("eos_token_id")) else {
                continue;
            };
            let listed = match value {
                Value::Array(list) => list.as_slice(),
                Value::Null => &[],
                one => std::slice::from_ref(one),
            };
            for id in listed {
                let id = id
                    .as_u64()
                    .and_then(|id| u32::try_from(id).ok())
                    .ok_or_else(|| {
                        Problem::field(format!("{file}: eos_token_id"), id, "a token id")
                    })?;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }

    pub(crate) fn chat_template(&self, folder: &Path) -> Result<Option<String>, FormatError> {
        let file = folder.join("chat_template.jinja");
        if file.is_file() {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Problem::io("read it")(error).at(&file))?;
            return Ok(Some(text));
        }
        match self
            .tokenizer_config
            .as_ref()
            .and_then(|config| config.get("chat_template"))
        {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(template)) => Ok(Some(template.clone())),
            // Several templates with names: the one for plain chats is called "default".
            Some(Value::Array(named)) => {
                let default = named
                    .iter()
                    .find(|entry| entry.get("name").is_some_and(|name| name == "default"));
                let text = default
                    .and_then(|entry| entry.get("template"))
                    .and_then(Value::as_str);
                Ok(text.map(str::to_owned))
            }
            Some(other) => {
                let kind = match other {
                    Value::Object(_) => "an object",
                    Value::Number(_) => "a number",
                    _ => "a truth value",
                };
                let problem =
                    Problem::field("tokenizer_config.json: chat_template", kind, "a text");
                Err(problem.at(folder))
            }
        }
    }
}

/// Reads a JSON file; `None` if it does not exist.
fn read_json(path: &PathBuf) -> Result<Option<Value>, FormatError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Problem::io("read it")(error).at(path)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => Err(Problem::field("the file", "JSON of another kind", "an object").at(path)),
        Err(error) => Err(Problem::field("the file", format!("'{error}'"), "JSON").at(path)),
    }
}
