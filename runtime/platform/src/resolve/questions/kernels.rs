//! The questions about kernels, blocks and graphs.

use super::{Answer, Questions, Refusal};
use crate::check;
use crate::costs::{self, Verdict};
use crate::facts::{GraphSupport, Kernel};
use crate::needs::{Need, takes_block};
use crate::plan::{DecidedBy, KernelChoices, Selection};
use crate::policy::{
    AttentionQuery, BlockPlan, BlockQuery, Choice, Decision, GraphPlan, GraphQuery, OpShape,
    Severity, Value,
};
use crate::text;

/// Trait of a matrix multiplication for steps of many rows, and what is added to the subject of its selection.
const MANY_ROWS: &str = "many-rows";

/// Traits of a model that do not concern its attention.
const NOT_OF_ATTENTION: [&str; 2] = ["multimodal", "pooling"];

impl Questions<'_> {
    /// Attention for prefill and for decode.
    pub(super) fn attention(&mut self) -> Answer<Vec<Selection>> {
        ["prefill", "decode"]
            .into_iter()
            .map(|phase| self.attention_of(phase))
            .collect()
    }

    fn attention_of(&mut self, phase: &str) -> Answer<Selection> {
        let config = self.settings.config.clone();
        let window = self.model.traits.iter().any(|t| t == "sliding-window");
        let query = AttentionQuery {
            device: self.devices.first().copied().unwrap_or(0),
            phase: phase.to_owned(),
            layer_kind: match (self.model.mla, window) {
                (Some(_), _) => "mla",
                (None, true) => "sliding-window",
                (None, false) => "full",
            }
            .to_owned(),
            head_size: self.model.head_size,
            num_heads: self.model.num_heads,
            num_kv_heads: self.model.num_kv_heads,
            dtype: config.dtype.clone(),
            kv_dtype: config.kv_dtype.clone(),
            block_size: self
                .settings
                .is_users("block-size")
                .then_some(config.block_size),
            requested: config.attention_backend.clone(),
            traits: self.attention_traits(),
            mla: self.model.mla,
            config: config.clone(),
        };
        let mut traits = query.traits.clone();
        traits.extend(query.mla.map(|_| "mla".to_owned()));
        let need = Need {
            op: "attention",
            phase: Some(phase),
            dtype: Some(&query.dtype),
            kv_dtype: Some(&query.kv_dtype),
            head_size: Some(query.head_size),
            block_size: query.block_size,
            format: None,
            traits: &traits,
            capability: self.capability,
        };
        let devices = self.devices.clone();
        let facts = self.facts.clone();
        let requested = query.requested.as_deref();
        let answer = self.said(
            "select-attention",
            |p, f| p.select_attention(f, &query),
            |answer| check::decision(answer, &need, requested, &facts, &devices),
        )?;
        let selection = self.selection("attention", phase, answer)?;
        match &query.requested {
            Some(wanted) if *wanted != selection.selected => {
                let known = selection
                    .rejected
                    .iter()
                    .find(|rejected| rejected.id == *wanted);
                let why = match known {
                    Some(rejected) => rejected.reasons.join("; "),
                    None if self.facts.kernels.iter().any(|kernel| kernel.id == *wanted) => {
                        format!(
                            "the platform prefers '{}' and does not say why",
                            selection.selected
                        )
                    }
                    None => {
                        let of_op = self
                            .facts
                            .kernels
                            .iter()
                            .filter(|kernel| kernel.op == "attention");
                        let known: Vec<_> = of_op.map(|kernel| kernel.id.as_str()).collect();
                        format!("there is no such kernel, only {}", text::list(&known))
                    }
                };
                let message = format!("'{wanted}' cannot serve {phase}: {why}");
                Err(self.wrong("attention-backend", message, "leave --attention-kernel out"))
            }
            Some(_) => Ok(Selection {
                by: DecidedBy::User,
                ..selection
            }),
            None => Ok(selection),
        }
    }

    /// Attention of the vision encoder, where there is one. It has no cache, and no phases.
    pub(super) fn vision(&mut self) -> Answer<Option<Selection>> {
        let Some(vision) = self.model.vision else {
            return Ok(None);
        };
        let config = self.settings.config.clone();
        let query = AttentionQuery {
            device: self.devices.first().copied().unwrap_or(0),
            phase: "encode".to_owned(),
            layer_kind: "full".to_owned(),
            head_size: vision.head_size,
            num_heads: vision.num_heads,
            num_kv_heads: vision.num_heads,
            dtype: config.dtype.clone(),
            kv_dtype: "auto".to_owned(),
            block_size: None,
            requested: None,
            traits: Vec::new(),
            mla: None,
            config,
        };
        let need = Need {
            op: "attention",
            dtype: Some(&query.dtype),
            head_size: Some(query.head_size),
            capability: self.capability,
            ..Need::default()
        };
        let devices = self.devices.clone();
        let facts = self.facts.clone();
        let answer = self.said(
            "select-vision-attention",
            |p, f| p.select_vision_attention(f, &query),
            |answer| check::decision(answer, &need, None, &facts, &devices),
        )?;
        self.selection("attention", "vision", answer).map(Some)
    }

    /// What the model asks of attention. Other traits of it are nothing to an attention kernel.
    fn attention_traits(&self) -> Vec<String> {
        let elsewhere = |name: &String| NOT_OF_ATTENTION.contains(&name.as_str());
        let mut traits = self.model.traits.clone();
        traits.retain(|name| !elsewhere(name));
        traits
    }

    /// A matrix multiplication for each weight format of the model.
    pub(super) fn matmul(&mut self) -> Answer<Vec<Selection>> {
        let mut formats: Vec<_> = self.model.formats.clone();
        // The one with the most bytes first: it is the one that people want to know of.
        formats.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut selections = Vec::new();
        for (format, _) in &formats {
            let mut few = self.matmul_of(format, format, &[])?;
            // Asked only where something waits for the question: few catalogues know the difference.
            if self.has_kernel_for_many_rows(format) {
                let subject = format!("{format} {MANY_ROWS}");
                let many = self.matmul_of(format, &subject, &[MANY_ROWS.to_owned()])?;
                let many = Some(many).filter(|many| many.selected != few.selected);
                let many = many.and_then(|many| self.weighed(format, &mut few, many));
                selections.push(few);
                selections.extend(many);
            } else {
                selections.push(few);
            }
        }
        Ok(selections)
    }

    fn matmul_of(&mut self, format: &str, subject: &str, traits: &[String]) -> Answer<Selection> {
        let shape = OpShape {
            m: None,
            n: self.model.intermediate_size,
            k: self.model.hidden_size,
            dtype: self.settings.config.dtype.clone(),
            format: Some(format.to_owned()),
            traits: traits.to_vec(),
        };
        self.operation("matmul", subject, &shape)
    }

    /// The kernel for many rows with the number of rows from which on it serves, where costs were measured; `None` if it
    /// is never the faster.
    fn weighed(&self, format: &str, few: &mut Selection, many: Selection) -> Option<Selection> {
        let costs = &self.facts.costs;
        match costs::compare(costs, format, &few.selected, &many.selected) {
            Some(Verdict::From { rows, why }) => Some(Selection {
                reason: format!("{}; from {rows} rows on, as measured: {why}", many.reason),
                from_rows: Some(rows),
                ..many
            }),
            Some(Verdict::Never { why }) => {
                let slower = format!("; '{}' is not faster for many rows: {why}", many.selected);
                few.reason.push_str(&slower);
                None
            }
            None => Some(many),
        }
    }

    fn has_kernel_for_many_rows(&self, format: &str) -> bool {
        let only = format!("only:{MANY_ROWS}");
        self.facts.kernels.iter().any(|kernel| {
            kernel.op == "matmul"
                && kernel.formats.iter().any(|f| f == format)
                && kernel.traits.contains(&only)
        })
    }

    /// Norms, rotation, activation functions.
    pub(super) fn elementwise(&mut self) -> Answer<Selection> {
        let width = self.model.hidden_size;
        let dtype = self.settings.config.dtype.clone();
        let shape = OpShape {
            m: None,
            n: width,
            k: width,
            dtype,
            format: None,
            traits: Vec::new(),
        };
        self.operation("elementwise", "", &shape)
    }

    fn operation(&mut self, op: &str, subject: &str, shape: &OpShape) -> Answer<Selection> {
        let need = Need {
            op,
            dtype: Some(&shape.dtype),
            format: shape.format.as_deref(),
            traits: &shape.traits,
            capability: self.capability,
            ..Need::default()
        };
        let devices = self.devices.clone();
        let facts = self.facts.clone();
        let answer = self.said(
            "kernel-priority",
            |p, f| p.kernel_priority(f, op, shape),
            |answer| check::decision(answer, &need, None, &facts, &devices),
        )?;
        self.selection(op, subject, answer)
    }

    fn selection(&mut self, op: &str, subject: &str, answer: Decision) -> Answer<Selection> {
        let purpose = if subject.is_empty() {
            op.to_owned()
        } else {
            format!("{op} of {subject}")
        };
        let Choice {
            selected,
            ranking,
            rejected,
            notes,
        } = match answer {
            Decision::Chosen(choice) => choice,
            Decision::Refused(refusal) => {
                return Err(Box::new(Refusal::NoKernel {
                    platform: self.id.clone(),
                    purpose,
                    refusal,
                }));
            }
        };
        let why = notes
            .iter()
            .position(|note| note.severity == Severity::Info);
        let reason = match why {
            Some(n) => notes[n].message.clone(),
            None => "the platform gives no reason".to_owned(),
        };
        let others: Vec<_> = notes
            .iter()
            .enumerate()
            .filter(|(n, _)| Some(*n) != why)
            .map(|(_, note)| note.clone())
            .collect();
        self.note(&others);
        Ok(Selection {
            op: op.to_owned(),
            subject: subject.to_owned(),
            selected,
            ranking,
            rejected,
            by: DecidedBy::Platform,
            reason,
            from_rows: None,
        })
    }

    pub(super) fn block(&mut self, attention: &[Selection]) -> Answer<BlockPlan> {
        let mut backends: Vec<_> = attention
            .iter()
            .map(|selection| selection.selected.clone())
            .collect();
        backends.dedup();
        let config = self.settings.config.clone();
        let query = BlockQuery {
            device: self.devices.first().copied().unwrap_or(0),
            backends: backends.clone(),
            model: self.model.clone(),
            config: config.clone(),
            state_page_bytes: self.model.state_bytes,
        };
        let answer = self.said(
            "choose-block-size",
            |p, f| p.choose_block_size(f, &query),
            |_| Ok(()),
        )?;
        let block = match answer {
            Ok(block) => block,
            Err(diagnostic) => return Err(self.rejected(vec![diagnostic])),
        };
        self.check_block(&block, &backends)
            .map_err(|message| self.bad("choose-block-size", message))?;
        if !self.settings.is_users("block-size") {
            let value = Value::Unsigned(block.block_size.into());
            self.settings
                .decide("block-size", &value, DecidedBy::Platform, &block.reason);
        } else if block.block_size != config.block_size {
            let message = format!(
                "{} instead of {}: {}",
                block.block_size, config.block_size, block.reason
            );
            return Err(self.wrong("block-size", message, "leave --block-size out"));
        }
        Ok(block)
    }

    fn check_block(&self, block: &BlockPlan, backends: &[String]) -> Result<(), String> {
        let BlockPlan {
            block_size,
            kv_layout,
            reason,
            ..
        } = block;
        if let Some(fault) = [Some(reason), kv_layout.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|t| text::fault(t))
        {
            return Err(fault);
        }
        if !(1..=1 << 16).contains(block_size) {
            return Err(format!(
                "a block of {block_size} tokens, expected 1 to 65536"
            ));
        }
        let chosen = self
            .facts
            .kernels
            .iter()
            .filter(|kernel| backends.contains(&kernel.id));
        for kernel in chosen {
            if !takes_block(kernel, *block_size) {
                return Err(format!(
                    "a block of {block_size} tokens, which kernel '{}' does not take",
                    kernel.id
                ));
            }
            let reads = &kernel.kv_layouts;
            match kv_layout {
                Some(layout) if !reads.is_empty() && !reads.contains(layout) => {
                    return Err(format!(
                        "another KV layout than {}, which kernel '{}' reads",
                        text::list(reads),
                        kernel.id
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn graphs(&mut self, selections: &[Selection]) -> Answer<GraphPlan> {
        let kernel = |id: &String| -> Option<&Kernel> {
            self.facts.kernels.iter().find(|kernel| kernel.id == *id)
        };
        let attention = selections
            .iter()
            .filter(|selection| selection.op == "attention");
        let weakest = attention
            .filter_map(|selection| kernel(&selection.selected))
            .min_by_key(|kernel| kernel.graph);
        let query = GraphQuery {
            config: self.settings.config.clone(),
            weakest: weakest.map_or(GraphSupport::Never, |kernel| kernel.graph),
            kernel: weakest.map(|kernel| kernel.id.clone()).unwrap_or_default(),
        };
        let weakest = query.weakest;
        let answer = self.said("plan-graphs", |p, f| p.plan_graphs(f, &query), |_| Ok(()))?;
        let graphs = match answer {
            Ok(graphs) => graphs,
            Err(diagnostic) => return Err(self.rejected(vec![diagnostic])),
        };
        check::graphs(&graphs).map_err(|message| self.bad("plan-graphs", message))?;
        if graphs.mode != crate::policy::GraphMode::None && weakest == GraphSupport::Never {
            let message =
                "graphs, though the chosen attention kernel cannot be captured".to_owned();
            return Err(self.bad("plan-graphs", message));
        }
        self.settings.config.graph_mode = graphs.mode;
        self.settings
            .config
            .capture_sizes
            .clone_from(&graphs.capture_sizes);
        Ok(graphs)
    }
}

/// What the kernel set is bound from.
pub(super) fn choices(selections: &[Selection]) -> KernelChoices {
    let of = |op: &str, subject: &str| {
        let found = selections
            .iter()
            .find(|selection| selection.op == op && selection.subject == subject);
        found
            .map(|selection| selection.selected.clone())
            .unwrap_or_default()
    };
    let many_from = selections.iter().filter_map(|s| {
        let format = s.subject.strip_suffix(MANY_ROWS)?.trim_end();
        Some((format.to_owned(), s.from_rows?))
    });
    let matmul = |many: bool| {
        let of_op = selections.iter().filter(|s| s.op == "matmul");
        let with_format = of_op.filter_map(|s| {
            let format = match many {
                true => s.subject.strip_suffix(MANY_ROWS)?.trim_end(),
                false if s.subject.ends_with(MANY_ROWS) => return None,
                false => &s.subject,
            };
            Some((format.to_owned(), s.selected.clone()))
        });
        with_format.collect()
    };
    KernelChoices {
        attention_prefill: of("attention", "prefill"),
        attention_decode: of("attention", "decode"),
        matmul: matmul(false),
        matmul_many: matmul(true),
        many_from: many_from.collect(),
        elementwise: of("elementwise", ""),
    }
}
