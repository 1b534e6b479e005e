//! `plinth facts`: what was measured, for people or as JSON.

use crate::cli::FactsArgs;
use crate::error::{Failure, Result};
use crate::startup;
use plinth_platform::facts::{DeviceFacts, Facts, HostFacts};
use plinth_platform::text::bytes;
use std::io::Write;

/// Runs the command.
pub fn run(args: &FactsArgs, out: &mut dyn Write) -> Result<()> {
    let facts = startup::facts(args.facts.as_deref())?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, facts.as_ref()).map_err(Failure::failed)?;
        writeln!(out)?;
        return Ok(());
    }
    host(&facts.host, out)?;
    devices(&facts, out)?;
    if !facts.costs.is_empty() {
        let costs = facts.costs.len();
        writeln!(
            out,
            "costs       {costs} of matrix products, measured by plinth calibrate"
        )?;
    }
    kernels(&facts, out)
}

fn host(host: &HostFacts, out: &mut dyn Write) -> Result<()> {
    let name = if host.model.is_empty() {
        "unnamed processor"
    } else {
        &host.model
    };
    writeln!(out, "processor   {name} ({}, {})", host.arch, host.os)?;
    let allowed: Vec<_> = host.logical.iter().filter(|cpu| cpu.allowed).collect();
    let cores: std::collections::BTreeSet<_> = allowed.iter().map(|cpu| cpu.core).collect();
    writeln!(
        out,
        "cpus        {} online, {} allowed, on {} cores",
        host.logical.len(),
        allowed.len(),
        cores.len()
    )?;
    writeln!(
        out,
        "threads     {} ({})",
        host.budget.threads, host.budget.threads_limit
    )?;
    writeln!(
        out,
        "memory      {} to be had ({})",
        bytes(host.budget.memory),
        host.budget.memory_limit
    )?;
    for node in &host.numa {
        let hidden = if node.visible {
            ""
        } else {
            ", not allowed to this process"
        };
        let of = bytes(node.total);
        writeln!(
            out,
            "node {:<6} {} free of {of}{hidden}",
            node.id,
            bytes(node.available)
        )?;
    }
    for cache in &host.caches {
        writeln!(
            out,
            "cache L{}    {}, shared by {}",
            cache.level,
            bytes(cache.bytes),
            cache.shared_by
        )?;
    }
    for (n, line) in wrap(&host.isa, 96).iter().enumerate() {
        writeln!(out, "{:<11} {line}", if n == 0 { "features" } else { "" })?;
    }
    Ok(())
}

fn devices(facts: &Facts, out: &mut dyn Write) -> Result<()> {
    for device in &facts.devices {
        writeln!(out, "device {:<4} {}", device.index, describe(device))?;
    }
    for note in &facts.driver_notes {
        writeln!(out, "driver      {}: {}", note.driver, note.found)?;
        if let Some(fix) = &note.fix {
            writeln!(out, "            fix: {fix}")?;
        }
    }
    Ok(())
}

fn describe(device: &DeviceFacts) -> String {
    let memory = format!(
        "{} free of {}",
        bytes(device.memory_free),
        bytes(device.memory_total)
    );
    match device.capability {
        Some((major, minor)) => format!(
            "{} {}, capability {major}.{minor}, {memory}",
            device.vendor, device.name
        ),
        None => format!("{} {}, {memory}", device.vendor, device.name),
    }
}

fn kernels(facts: &Facts, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "kernels     {} in this build:", facts.kernels.len())?;
    let width = facts
        .kernels
        .iter()
        .map(|kernel| kernel.id.len())
        .max()
        .unwrap_or(0);
    for kernel in &facts.kernels {
        let missing: Vec<_> = kernel
            .requires
            .iter()
            .filter(|need| !facts.host.isa.contains(need))
            .collect();
        let verdict = match missing.as_slice() {
            _ if kernel.provider != "cpu" => format!("for {}", kernel.provider),
            [] => "runs here".to_owned(),
            missing => format!(
                "not here: no {}",
                missing
                    .iter()
                    .map(|s| s.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        writeln!(out, "            {:width$}  {verdict}", kernel.id)?;
    }
    Ok(())
}

/// Joins words into lines of at most `width` characters.
fn wrap(words: &[String], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        let line = lines.last_mut().expect("begins with one line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.clone());
        }
    }
    lines
}
