//! From bytes to a component that may be asked: everything that is not exactly a platform plugin is refused, with what
//! was found and what was expected.

mod size;

use crate::bindings::{PlatformPlugin, PlatformPluginPre};
use crate::cache::Cache;
use crate::guest::Guest;
use crate::host::Shared;
use crate::sandbox::State;
use crate::trust::digest;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use wasmtime::component::{Component, HasSelf, Linker, types::ComponentItem};

/// The export that makes a component a platform.
pub(crate) const INTERFACE: &str = "plinth:platform/platform@0.1.0";

/// The types of the interface, which a component imports without importing anything.
pub(crate) const TYPES: &str = "plinth:platform/types@0.1.0";

/// The only function that may be imported.
const LOG: &str = "log";

/// Stack of the thread that compiles: deeply nested input recurses in the compiler.
const COMPILER_STACK: usize = 32 << 20;

/// Why a component is not loaded. The host's own troubles are the last case; all others are the file's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read '{name}': {why}")]
    Unreadable {
        /// The file.
        name: String,
        /// What the system says.
        why: String,
    },
    /// It is not a component.
    #[error("'{name}' is not a platform plugin: found {found}, expected {expected}")]
    NotAComponent {
        /// The file.
        name: String,
        /// What it is.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// It is larger than a policy needs to be.
    #[error("'{name}': found {found}, expected {expected}")]
    TooLarge {
        /// The file.
        name: String,
        /// How large.
        found: String,
        /// How large it may be.
        expected: String,
    },
    /// It imports what it may not.
    #[error(
        "'{name}' imports {imports}, and a platform plugin may import '{LOG}' and nothing else: build it without a \
         system interface (Rust: for wasm32-unknown-unknown; other languages: stub WASI when building)"
    )]
    Imports {
        /// The file.
        name: String,
        /// Their names.
        imports: String,
    },
    /// It exports another interface.
    #[error("'{name}' exports {found}, expected {INTERFACE}: {fix}")]
    Interface {
        /// The file.
        name: String,
        /// What it exports.
        found: String,
        /// What to do.
        fix: String,
    },
    /// The interface has the right name and other types.
    #[error(
        "'{name}' does not fit {INTERFACE}: {why}; build it against the interface of this version of plinth"
    )]
    Types {
        /// The file.
        name: String,
        /// Which.
        why: String,
    },
    /// Wasmtime cannot run here.
    #[error("WebAssembly cannot run on this machine: {why}")]
    Host {
        /// Why.
        why: String,
    },
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, LoadError> {
    let name = || path.display().to_string();
    let unreadable = |error: std::io::Error| LoadError::Unreadable {
        name: name(),
        why: error.to_string(),
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    match bytes.len() <= limit {
        true => Ok(bytes),
        false => Err(LoadError::TooLarge {
            name: name(),
            found: format!("more than {limit} bytes"),
            expected: format!("at most {limit}"),
        }),
    }
}

/// Loads a component.
pub(crate) fn load(
    shared: &Arc<Shared>,
    cache: Option<&Cache>,
    name: &str,
    bytes: &[u8],
) -> Result<Guest, LoadError> {
    check_kind(name, bytes, shared.limits.file)?;
    let digest = digest(bytes);
    let component = match cache.and_then(|cache| cache.find(&shared.engine, &digest)) {
        Some(component) => component,
        None => {
            size::check(name, bytes)?;
            let component = compile(shared, name, bytes)?;
            if let Some(cache) = cache {
                cache.keep(&shared.engine, &digest, &component);
            }
            component
        }
    };
    check_imports(shared, name, &component)?;
    check_exports(shared, name, &component)?;
    let pre = link(shared, &component).map_err(|error| LoadError::Types {
        name: name.to_owned(),
        why: format!("{error:#}"),
    })?;
    Ok(Guest::new(Arc::clone(shared), pre, name.to_owned(), digest))
}

/// The empty linker, but for `log`.
fn link(shared: &Shared, component: &Component) -> wasmtime::Result<PlatformPluginPre<State>> {
    let mut linker = Linker::new(&shared.engine);
    PlatformPlugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut State| state)?;
    PlatformPluginPre::new(linker.instantiate_pre(component)?)
}

/// What the first bytes say it is.
fn check_kind(name: &str, bytes: &[u8], limit: usize) -> Result<(), LoadError> {
    if bytes.len() > limit {
        return Err(LoadError::TooLarge {
            name: name.to_owned(),
            found: format!("{} bytes", bytes.len()),
            expected: format!("at most {limit}"),
        });
    }
    let found = match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "a core WebAssembly module: make a component of it (wasm-component-ld, or wasm-tools component new)".to_owned()
        }
        [0, b'a', b's', b'm', ..] => "a WebAssembly binary of another version".to_owned(),
        [0x7f, b'E', b'L', b'F', ..] => {
            "compiled code (a .cwasm file or a library): only the component itself can be checked".to_owned()
        }
        [] => "an empty file".to_owned(),
        [b'(', ..] => "text: assemble it first".to_owned(),
        other => format!("a file that begins with {:02x?}", &other[..other.len().min(8)]),
    };
    Err(LoadError::NotAComponent {
        name: name.to_owned(),
        found,
        expected: "a WebAssembly component".to_owned(),
    })
}

/// Compiles on a thread with a large stack: input that is nested deeply recurses in the compiler, and a stack that
/// overflows would end the process.
fn compile(shared: &Shared, name: &str, bytes: &[u8]) -> Result<Component, LoadError> {
    let compiled = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new()
            .name("guest-compiler".to_owned())
            .stack_size(COMPILER_STACK);
        let thread = builder.spawn_scoped(scope, || Component::new(&shared.engine, bytes));
        match thread {
            Err(error) => Err(LoadError::Host {
                why: error.to_string(),
            }),
            Ok(thread) => thread.join().map_err(|_| LoadError::Host {
                why: "the compiler panicked".to_owned(),
            }),
        }
    })?;
    compiled.map_err(|error| LoadError::NotAComponent {
        name: name.to_owned(),
        found: format!(
            "a binary that is not valid: {}",
            first_line(&format!("{error:#}"))
        ),
        expected: "a WebAssembly component".to_owned(),
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn check_imports(shared: &Shared, name: &str, component: &Component) -> Result<(), LoadError> {
    let component_type = component.component_type();
    let mut refused = Vec::new();
    for (import, item) in component_type.imports(&shared.engine) {
        let allowed = match &item.ty {
            ComponentItem::ComponentFunc(_) => import == LOG,
            ComponentItem::ComponentInstance(instance) => {
                import == TYPES
                    && instance
                        .exports(&shared.engine)
                        .all(|(_, item)| matches!(item.ty, ComponentItem::Type(_)))
            }
            ComponentItem::Type(_) => true,
            _ => false,
        };
        if !allowed {
            refused.push(plinth_platform::text::quote(import));
        }
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(LoadError::Imports {
            name: name.to_owned(),
            imports: plinth_platform::text::list(&refused),
        }),
    }
}

fn check_exports(shared: &Shared, name: &str, component: &Component) -> Result<(), LoadError> {
    let component_type = component.component_type();
    let exports: Vec<_> = component_type
        .exports(&shared.engine)
        .map(|(export, _)| export.to_owned())
        .collect();
    if exports.iter().any(|export| export == INTERFACE) {
        return Ok(());
    }
    let other_version = exports
        .iter()
        .any(|export| export.starts_with("plinth:platform/platform@"));
    let fix = match other_version {
        true => "it was built for another version of plinth",
        false => "it is a component for something else",
    };
    let shown: Vec<_> = exports
        .iter()
        .take(8)
        .map(|export| plinth_platform::text::quote(export))
        .collect();
    let found = if shown.is_empty() {
        "nothing".to_owned()
    } else {
        plinth_platform::text::list(&shown)
    };
    Err(LoadError::Interface {
        name: name.to_owned(),
        found,
        fix: fix.to_owned(),
    })
}
