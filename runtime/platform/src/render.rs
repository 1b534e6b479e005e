//! A plan as a tree for people: every line with its reason and with who decided.

use crate::plan::{DecidedBy, Finding, Origin, Outcome, Plan, ProbeRecord, Selection};
use crate::policy::{Rejected, Severity};
use crate::resolve::{of_diagnostic, of_record};
use crate::settings::show;
use crate::text::{bytes, count, list};
use std::fmt::Write;

/// Width of a line.
const WIDTH: usize = 110;

/// Where the text of a line begins.
const INDENT: usize = 13;

/// What was decided, by whom and why: `16 (cpu: the smallest)`.
fn because(what: &str, by: &str, why: &str) -> String {
    format!("{what} ({by}: {why})")
}

/// The plan.
pub fn plan(plan: &Plan) -> String {
    let mut out = Page(String::new());
    if plan.runtime.name != "plinth" {
        let text = format!(
            "{}: what it would run, by its catalogue of kernels",
            plan.runtime
        );
        out.line("engine", &text);
    }
    platform(plan, &mut out);
    model(plan, &mut out);
    selections(plan, &mut out);
    sizes(plan, &mut out);
    settings(plan, &mut out);
    rules(plan, &mut out);
    findings(plan, &mut out);
    out.line("digest", &plan.digest);
    out.0
}

struct Page(String);

impl Page {
    /// A line with a heading; what is too long goes on below, indented further.
    fn line(&mut self, heading: &str, text: &str) {
        let mut line = format!("{heading:<INDENT$}");
        let mut used = line.chars().count();
        let mut first = true;
        for word in text.split(' ') {
            let len = word.chars().count();
            if !first && used + 1 + len > WIDTH {
                self.push(&line);
                line = " ".repeat(INDENT + 2);
                used = INDENT + 2;
                first = true;
            }
            if !first {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += len;
            first = false;
        }
        self.push(&line);
    }

    fn push(&mut self, line: &str) {
        self.0.push_str(line.trim_end());
        self.0.push('\n');
    }
}

fn who(by: DecidedBy, plan: &Plan) -> &str {
    match by {
        DecidedBy::User => "user",
        DecidedBy::Platform => &plan.platform.id,
        DecidedBy::Floor => "plinth",
    }
}

fn platform(plan: &Plan, out: &mut Page) {
    let chosen = &plan.platform;
    let digest = match chosen.digest.get(..19) {
        Some(short) => format!(", {short}…"),
        None => String::new(),
    };
    let text = format!(
        "{} {} by {}, {}{digest}",
        chosen.id, chosen.version, chosen.vendor, chosen.origin
    );
    out.line(
        "platform",
        &because(&text, who(chosen.by, plan), &chosen.reason),
    );
    let others = plan
        .probes
        .iter()
        .filter(|record| record.id != chosen.id || record.origin != chosen.origin);
    let (absent, others): (Vec<&ProbeRecord>, Vec<_>) = others.partition(|record| lacks(record));
    others
        .iter()
        .for_each(|record| out.line("", &of_record(record)));
    let absent: Vec<_> = absent.iter().map(|record| record.id.as_str()).collect();
    if !absent.is_empty() {
        let text = format!(
            "{} (built in): unavailable: no device of theirs",
            absent.join(", ")
        );
        out.line("", &text);
    }
    for (name, value) in &chosen.env {
        out.line("", &format!("sees {name}={}", crate::text::quote(value)));
    }
}

/// A built-in platform for devices that are not there, and no driver either: nobody misses it.
fn lacks(record: &ProbeRecord) -> bool {
    match (&record.origin, &record.outcome) {
        (Origin::BuiltIn, Outcome::Unavailable(reasons)) => {
            reasons.iter().all(|reason| reason.code == "no-device")
        }
        _ => false,
    }
}

fn model(plan: &Plan, out: &mut Page) {
    let model = &plan.model;
    let kind = model.quantization.as_ref().unwrap_or(&model.dtype);
    let text = format!(
        "{} {kind} · {} layers, {} heads of {} over {} kv heads · made for {} tokens",
        model.arch,
        model.layers,
        model.num_heads,
        model.head_size,
        model.num_kv_heads,
        count(model.max_len.into())
    );
    out.line("model", &text);
}

fn selections(plan: &Plan, out: &mut Page) {
    let mut last = "";
    let mut shown: Vec<&Selection> = Vec::new();
    for selection in &plan.selections {
        let heading = if selection.op == last {
            ""
        } else {
            &selection.op
        };
        last = &selection.op;
        let found = |id: &String| *id == selection.selected;
        let place = selection.ranking.iter().position(found).unwrap_or(0) + 1;
        let place = match (place, selection.ranking.len()) {
            (_, 1) => "the only one".to_owned(),
            (1, n) => format!("1st of {n}"),
            (place, n) => format!("asked for; {place} of {n} in the platform's order"),
        };
        let what = format!("{:<8} {} · {place}", selection.subject, selection.selected);
        let text = because(
            what.trim_start(),
            who(selection.by, plan),
            &selection.reason,
        );
        out.line(heading, &text);
        // Decode is mostly decided as prefill was, and one format as another: that is not said twice.
        let repeated = shown.iter().any(|earlier| {
            earlier.op == selection.op
                && earlier.ranking == selection.ranking
                && ids(&earlier.rejected).eq(ids(&selection.rejected))
        });
        if !repeated {
            let next: Vec<_> = selection
                .ranking
                .iter()
                .filter(|id| **id != selection.selected)
                .map(String::as_str)
                .collect();
            if !next.is_empty() {
                out.line("", &format!("  then {}", next.join(", ")));
            }
            rejected(&selection.rejected, out);
        }
        shown.push(selection);
    }
}

fn ids(list: &[Rejected]) -> impl Iterator<Item = &str> {
    list.iter().map(|rejected| rejected.id.as_str())
}

/// Kernels that were rejected for the same reasons share a line.
fn rejected(list: &[Rejected], out: &mut Page) {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for Rejected { id, reasons } in list {
        let reasons = reasons.join("; ");
        match groups.iter_mut().find(|(other, _)| *other == reasons) {
            Some((_, ids)) => ids.push(id),
            None => groups.push((reasons, vec![id])),
        }
    }
    for (reasons, ids) in groups {
        out.line("", &format!("  not {}: {reasons}", ids.join(", ")));
    }
}

fn sizes(plan: &Plan, out: &mut Page) {
    let (memory, engine) = (&plan.memory, &plan.engine);
    let size = because(
        &format!("blocks of {} tokens", plan.block.block_size),
        &plan.platform.id,
        &plan.block.reason,
    );
    let cache = because(
        &format!(
            "{} blocks, {} of {} each",
            count(memory.num_blocks.into()),
            match engine.kv_dtype.as_str() {
                "auto" => &engine.dtype,
                set => set,
            },
            bytes(memory.kv_block_bytes)
        ),
        who(memory.by, plan),
        &memory.reason,
    );
    out.line("kv cache", &size);
    out.line("", &cache);
    let whole = memory.weights + memory.activations + memory.kv_bytes;
    let text = format!(
        "weights {} + activations up to {} + kv cache up to {} = {} of {} that may be taken ({} there: {})",
        bytes(memory.weights),
        bytes(memory.activations),
        bytes(memory.kv_bytes),
        bytes(whole),
        bytes(memory.usable),
        bytes(memory.available),
        memory.limit
    );
    out.line("memory", &text);
    let full = match memory.full_sequences {
        1 => "1 sequence fits".to_owned(),
        n => format!("{n} sequences fit"),
    };
    out.line(
        "",
        &format!(
            "{full} at the full context of {} tokens",
            count(engine.max_model_len.into())
        ),
    );
    let threads = &plan.thread_reason;
    let workers = because(
        &plan.threads.workers.to_string(),
        who(threads.by, plan),
        &threads.reason,
    );
    let nodes = nodes(plan).map_or_else(String::new, |nodes| format!(" · {nodes}"));
    out.line(
        "threads",
        &format!("{workers} · {}{nodes}", threads.pinning),
    );
    let graphs = plan
        .graphs
        .notes
        .iter()
        .find(|note| note.severity == Severity::Info);
    let why = graphs.map_or("the platform gives no reason", |note| note.message.as_str());
    let mode = show(
        &crate::settings::get(engine, "graph-mode").unwrap_or(crate::policy::Value::Boolean(false)),
    );
    let captured = match plan.graphs.capture_sizes.as_slice() {
        [] => String::new(),
        [one] => format!(", for a batch of {one}"),
        [least, .., most] => format!(
            ", for {} batch sizes from {least} to {most}",
            plan.graphs.capture_sizes.len()
        ),
    };
    let mode = format!("{}{captured}", mode.trim_matches('\''));
    out.line("graphs", &because(&mode, &plan.platform.id, why));
    let devices = plan.platform.devices.len();
    let used = engine.tensor_parallel * engine.pipeline_parallel;
    if devices > 1 || used > 1 {
        let (collective, executor) = (&plan.parallel.collective, &plan.parallel.executor);
        let how = match used {
            1 => "the parallel sizes are 1".to_owned(),
            _ => format!("collectives by {collective}, {executor}"),
        };
        out.line(
            "devices",
            &because(&format!("{used} of {devices}"), "plinth", &how),
        );
    }
}

/// How the workers are spread over NUMA nodes, if they are.
fn nodes(plan: &Plan) -> Option<String> {
    let by_node = plan.threads.by_node();
    let [(_, first), _, ..] = by_node[..] else {
        return None;
    };
    let even = by_node.iter().all(|(_, workers)| *workers == first);
    let spread = match even {
        true => {
            let ids: Vec<_> = by_node.iter().map(|(id, _)| id.to_string()).collect();
            format!("{first} on each of NUMA nodes {}", list(&ids))
        }
        false => {
            let each = by_node
                .iter()
                .map(|(id, workers)| format!("{workers} on NUMA node {id}"));
            list(&each.collect::<Vec<_>>())
        }
    };
    // Weights on a device are on no node, and where another engine lays them is its own affair.
    let here = plan.runtime.name == "plinth" && plan.platform.devices.is_empty();
    let share = match here {
        true => ", each with its share of every matrix",
        false => "",
    };
    Some(spread + share)
}

/// Settings that have no line of their own yet.
fn settings(plan: &Plan, out: &mut Page) {
    let mut heading = "settings";
    for setting in &plan.settings {
        let shown_elsewhere = [
            "block-size",
            "threads",
            "kv-bytes",
            "graph-mode",
            "capture-sizes",
        ];
        let untouched = setting.by == DecidedBy::Floor && setting.reason == "the default";
        if untouched || shown_elsewhere.contains(&setting.path.as_str()) {
            continue;
        }
        let value = setting.value.as_ref().map(show).unwrap_or_default();
        let wanted = match &setting.wanted {
            Some(wanted) => format!(" instead of {}", show(wanted)),
            None => String::new(),
        };
        let value = value.trim_matches('\'');
        let text = format!("{:<18} {value}{wanted}", setting.path);
        out.line(
            heading,
            &because(&text, who(setting.by, plan), &setting.reason),
        );
        heading = "";
    }
}

fn rules(plan: &Plan, out: &mut Page) {
    let mut heading = "requests";
    for rule in &plan.rules {
        out.line(
            heading,
            &format!(
                "{} {} {}{}: {}",
                rule.field,
                rule.op,
                rule.operand,
                match rule.prompts {
                    Some((least, most)) => format!(" for prompts of {least} to {most} tokens"),
                    None => String::new(),
                },
                rule.message
            ),
        );
        heading = "";
    }
}

fn findings(plan: &Plan, out: &mut Page) {
    let mut heading = "findings";
    for Finding { about, diagnostic } in &plan.findings {
        let grave = match diagnostic.severity {
            Severity::Info => "note",
            Severity::Warn => "warning",
            Severity::Reject => "rejected",
        };
        let mut text = grave.to_owned();
        if !about.is_empty() {
            write!(text, " ({about})").expect("a String takes all that is written to it");
        }
        out.line(heading, &format!("{text}: {}", of_diagnostic(diagnostic)));
        heading = "";
    }
}
