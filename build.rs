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
    if let Err(error) = write_library(&out) {
        println!("cargo::error=cannot list the library of machines: {error}");
    }
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

/// What is known of machines and models, as constants: `MACHINES`, `MODELS`.
fn write_library(out: &Path) -> std::io::Result<()> {
    let mut code = String::new();
    for (name, folder) in [("MACHINES", "tests/facts"), ("MODELS", "tests/models")] {
        println!("cargo::rerun-if-changed={folder}");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                files.push(std::path::absolute(path)?);
            }
        }
        files.sort();
        code += &format!("const {name}: [(&str, &str); {}] = [\n", files.len());
        for path in files {
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            code += &format!("    ({stem:?}, include_str!({path:?})),\n");
        }
        code += "];\n";
    }
    std::fs::write(out.join("library.rs"), code)
}

/// Beside the profiles' folders, `target/guests`: debug, release and tests share what is built once.
fn shared_target_dir(out: &Path) -> PathBuf {
    let target = out
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "build"))
        .and_then(|build| build.parent()?.parent());
    target.unwrap_or(out).join("guests")
}
