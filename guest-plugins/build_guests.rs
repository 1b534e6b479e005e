//! Builds component crates for WebAssembly, by a Cargo of their own. Shared by the build script of the binary, which
//! embeds the built-in platforms, and by tests, which want hostile ones too.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of all guests: it has no system interface, so a guest cannot even ask for one.
const TARGET: &str = "wasm32-unknown-unknown";

/// Environment variables of the Cargo that runs us, which are not meant for another.
const NOT_OURS: [&str; 9] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "CARGO_MAKEFLAGS",
];

/// Builds packages of the workspace at `workspace`, and returns the folder of their `.wasm` files.
///
/// # Errors
/// What Cargo says, and what to do if the target is missing.
pub fn build_guests(
    workspace: &Path,
    target_dir: &Path,
    packages: &[&str],
) -> Result<PathBuf, String> {
    require_target()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for name in NOT_OURS {
        command.env_remove(name);
    }
    // The same source gives the same bytes wherever it lies: panics name paths.
    let source = workspace.parent().unwrap_or(workspace);
    let mut flags = vec![format!("--remap-path-prefix={}=.", source.display())];
    if let Some(home) = cargo_home() {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    command
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_dir);
    for package in packages {
        command.args(["--package", package]);
    }
    let output = command
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "the platform plugins in '{}' do not build:\n{said}",
            workspace.display()
        ));
    }
    Ok(target_dir.join(TARGET).join("release"))
}

fn cargo_home() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(home)
}

/// Without its standard library the compiler says only that it cannot find `core`.
fn require_target() -> Result<(), String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| format!("cannot run rustc: {error}"))?;
    let folder = String::from_utf8_lossy(&output.stdout);
    match Path::new(folder.trim()).is_dir() {
        true => Ok(()),
        false => Err(format!(
            "the target of platform plugins is not installed: run `rustup target add {TARGET}`"
        )),
    }
}
