//! Builds the built-in platforms, which the binary embeds.

#[path = "guest-plugins/build_guests.rs"]
mod build_guests;

use build_guests::build_guests;
use std::path::{Path, PathBuf};

const BUILT_IN: [&str; 5] = ["cpu", "cuda", "rocm", "tpu", "xpu"];

fn main() {
    println!("cargo::rerun-if-changed=guest-plugins");
    println!("cargo::rerun-if-changed=wit");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    let built = build_guests(
        Path::new("guest-plugins"),
        &shared_target_dir(&out),
        &BUILT_IN,
    );
    let folder = match built {
        Ok(folder) => folder,
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
            return;
        }
    };
    for name in BUILT_IN {
        let file = format!("{name}.wasm");
        if let Err(error) = std::fs::copy(folder.join(&file), out.join(&file)) {
            println!("cargo::error=cannot copy '{file}': {error}");
        }
    }
}

/// Beside the profiles' folders, `target/guests`: debug, release and tests share what is built once.
fn shared_target_dir(out: &Path) -> PathBuf {
    let target = out
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "build"))
        .and_then(|build| build.parent()?.parent());
    target.unwrap_or(out).join("guests")
}
