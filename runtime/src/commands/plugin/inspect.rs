//! `plinth plugin inspect`: a component as seen from outside, and who it says it is.

use crate::error::{Failure, Result};
use crate::platforms;
use plinth_host::{Inspection, inspect};
use plinth_platform::policy::{Descriptor, Platform};
use plinth_platform::text::bytes;
use plinth_platform::text::visible;
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct Report {
    origin: String,
    descriptor: Descriptor,
    #[serde(flatten)]
    inspection: Inspection,
}

pub(super) fn run(plugin: &str, json: bool, out: &mut dyn Write) -> Result<()> {
    let loaded = platforms::one(plugin)?;
    let inspection = inspect(&loaded.host, plugin, &loaded.bytes).map_err(Failure::input)?;
    let descriptor = loaded.guest()?.describe().map_err(Failure::failed)?;
    let report = Report {
        origin: loaded.origin.to_string(),
        descriptor,
        inspection,
    };
    match json {
        true => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(Failure::failed)?;
            Ok(writeln!(out)?)
        }
        false => print(&report, out),
    }
}

fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let Report {
        origin,
        descriptor,
        inspection,
    } = report;
    let list = |items: &[String]| match items {
        [] => "none".to_owned(),
        items => items.join(", "),
    };
    let variable = descriptor.visible_devices_var.as_deref();
    let size = bytes(inspection.bytes as u64);
    let lines = [
        (
            "platform",
            format!(
                "{} {} by {}",
                descriptor.id, descriptor.version, descriptor.vendor
            ),
        ),
        ("from", format!("{origin}, {size}")),
        ("digest", inspection.digest.clone()),
        ("exports", list(&inspection.exports)),
        ("imports", list(&inspection.imports)),
        ("environment", list(&descriptor.env_allowlist)),
        ("hides devices by", variable.unwrap_or("nothing").to_owned()),
        ("quantisation", list(&descriptor.extra_quantization)),
    ];
    for (name, value) in lines {
        // A component says of itself what it likes, escape sequences included.
        writeln!(out, "{name:<16}  {}", visible(&value))?;
    }
    Ok(())
}
