//! What vendors of vLLM do today by patching it, as answers: a device whose programs are compiled ahead for a few shapes.
//!
//! - only models that it was compiled for are served (vllm-spyre checks a registry of models);
//! - the batch and the tokens of a step are those that were compiled (vllm-rbln replaces `EngineArgs.get_batch_defaults`);
//! - the scheduler does not run ahead, and a block is a fixed number of tokens (both set on the configuration);
//! - a request may ask for as many tokens as its prompt's shape has room for (vllm-spyre overrides `get_max_output_tokens`,
//!   and rewrites requests in `validate_request`).
//!
//! The device is made up, and its kernels are those of the CPU: the rules are what the example is about. It is meant for a
//! server that serves one thing: load it with `--plugin`, not from the plugin folder.

use plinth_sdk::prelude::*;

struct Shapes;

/// A shape that was compiled.
#[derive(Clone, Copy)]
struct Shape {
    /// Longest prompt, in tokens.
    prompt: u32,
    /// Most tokens of an answer to it.
    answer: u32,
}

/// What is compiled where nobody says otherwise.
const COMPILED: [Shape; 2] = [
    Shape {
        prompt: 64,
        answer: 256,
    },
    Shape {
        prompt: 512,
        answer: 64,
    },
];

/// `PROMPT:ANSWER` in tokens, several with commas between them.
const VARIABLE: &str = "SHAPES_COMPILED";

/// Sequences of a batch, compiled too.
const SEQUENCES: u32 = 4;

/// Tokens in a block, and of a step a multiple of it.
const BLOCK: u32 = 64;

/// Models by architecture, width of the residual stream, and layers.
const MODELS: [(&str, u32, u32); 2] = [("llama", 576, 30), ("llama", 2048, 16)];

/// The shapes, shortest prompts first.
fn shapes(facts: &Facts) -> Vec<Shape> {
    let written = facts.env.iter().find(|(name, _)| name == VARIABLE);
    let read = |text: &str| {
        let (prompt, answer) = text.trim().split_once(':')?;
        Some(Shape {
            prompt: prompt.parse().ok().filter(|&n| n > 0)?,
            answer: answer.parse().ok().filter(|&n| n > 0)?,
        })
    };
    let mut shapes: Vec<_> = match written {
        Some((_, list)) => list.split(',').filter_map(read).collect(),
        None => COMPILED.to_vec(),
    };
    shapes.sort_by_key(|shape| shape.prompt);
    shapes
}

impl Platform for Shapes {
    fn describe() -> Descriptor {
        Descriptor {
            env_allowlist: vec![VARIABLE.to_owned()],
            ..descriptor("shapes", "An example", (1, 0, 0))
        }
    }

    fn probe(facts: &Facts) -> ProbeResult {
        match shapes(facts).is_empty() {
            false => ProbeResult::Available(Availability {
                devices: Vec::new(),
                score: 20,
                notes: Vec::new(),
            }),
            true => ProbeResult::Unavailable(vec![reject(
                "no-shapes",
                format!("{VARIABLE} holds no shape such as 512:64"),
                Some("unset it, or name the shapes that were compiled".to_owned()),
            )]),
        }
    }

    fn batch_defaults(facts: &Facts, _: &str, _: u32) -> BatchPlan {
        let longest = shapes(facts).last().map_or(BLOCK, |shape| shape.prompt);
        batch(
            longest.next_multiple_of(BLOCK),
            SEQUENCES,
            "what was compiled: one prompt of the longest shape a step",
        )
    }

    fn default_config(_: &Facts, _: &ModelFacts, config: &EngineConfig) -> Vec<Patch> {
        let off = patch(
            "async-scheduling",
            Value::Boolean(false),
            "the next step's shape is known when this one has ended",
        );
        (!set_by_user(config, "async-scheduling"))
            .then_some(off)
            .into_iter()
            .collect()
    }

    fn check_config(_: &Facts, model: &ModelFacts, config: &EngineConfig) -> CheckResult {
        let known = MODELS.iter().any(|&(arch, width, layers)| {
            (model.arch.as_str(), model.hidden_size, model.layers) == (arch, width, layers)
        });
        let mut diagnostics = Vec::new();
        if !known {
            let message = format!(
                "{} of {} layers, {} wide, was not compiled for this device",
                model.arch, model.layers, model.hidden_size
            );
            diagnostics.push(reject(
                "unknown-model",
                message,
                Some("compile it, or take another platform (--platform cpu)".to_owned()),
            ));
        }
        if config.max_num_seqs > SEQUENCES {
            let message = format!(
                "{} sequences asked for, and the batch was compiled for {SEQUENCES}",
                config.max_num_seqs
            );
            diagnostics.push(Diagnostic {
                path: Some("max-num-seqs".to_owned()),
                ..reject(
                    "batch",
                    message,
                    Some(format!("take --max-num-seqs {SEQUENCES}")),
                )
            });
        }
        CheckResult {
            patches: Vec::new(),
            diagnostics,
        }
    }

    fn choose_block_size(facts: &Facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic> {
        block_of(facts, query, &[BLOCK], "as it was compiled")
    }

    /// For each shape: prompts that it is the shortest for, and what they may ask for.
    fn request_rules(facts: &Facts, _: &EngineConfig) -> Vec<Rule> {
        let shapes = shapes(facts);
        let mut rules = Vec::new();
        let mut least = 0;
        for Shape { prompt, answer } in &shapes {
            rules.push(Rule {
                field: "max-tokens".to_owned(),
                op: "cap".to_owned(),
                operand: answer.to_string(),
                prompts: Some((least, *prompt)),
                message: format!(
                    "answers to prompts of up to {prompt} tokens have room for {answer}"
                ),
            });
            least = prompt + 1;
        }
        if let Some(longest) = shapes.last() {
            rules.push(Rule {
                field: "prompt-len".to_owned(),
                op: "at-most".to_owned(),
                operand: longest.prompt.to_string(),
                prompts: None,
                message: format!(
                    "the longest prompt that was compiled for has {} tokens",
                    longest.prompt
                ),
            });
        }
        rules
    }
}

export_platform!(Shapes);
