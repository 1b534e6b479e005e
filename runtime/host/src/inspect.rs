//! A look at a component without running it.

use crate::host::Host;
use crate::load::{INTERFACE, LoadError};
use serde::Serialize;

/// What a component is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// `sha256:…` of its bytes.
    pub digest: String,
    /// Their number.
    pub bytes: usize,
    /// The interface that this version of plinth asks.
    pub expected_interface: &'static str,
    /// What it exports.
    pub exports: Vec<String>,
    /// What it imports; a platform plugin imports `log` and the types of the interface.
    pub imports: Vec<String>,
}

/// Looks at a component. It is loaded as any other, and so refused for the same reasons.
///
/// # Errors
/// It is no platform plugin.
pub fn inspect(host: &Host, name: &str, bytes: &[u8]) -> Result<Inspection, LoadError> {
    let guest = host.load_bytes(name, bytes)?;
    let engine = &host.shared.engine;
    let component_type = guest.component().component_type();
    let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    Ok(Inspection {
        digest: guest.digest().to_owned(),
        bytes: bytes.len(),
        expected_interface: INTERFACE,
        exports: names(
            component_type
                .exports(engine)
                .map(|(name, _)| name)
                .collect(),
        ),
        imports: names(
            component_type
                .imports(engine)
                .map(|(name, _)| name)
                .collect(),
        ),
    })
}
