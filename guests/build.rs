//! Builds the guests, which run without an operating system, for both architectures.
//!
//! They are a workspace of their own (`bare`), built by the cargo and the rustc that build this crate, into a folder below this crate's own. What is
//! said to the outer cargo about flags, targets and wrappers is meant for the host's programs, and is kept from the inner one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets, and how code for them refers to its own addresses: x86_64 runs where it is linked, aarch64 wherever it was loaded.
const TARGETS: [(&str, &str, &str); 2] =
    [("x86_64", "x86_64-unknown-none", "static"), ("aarch64", "aarch64-unknown-none-softfloat", "pic")];

const GUESTS: [&str; 3] = ["hello", "io", "probe"];

fn main() {
    let sources = [
        "bare/Cargo.toml",
        "bare/Cargo.lock",
        "bare/build.rs",
        "bare/link",
        "bare/src",
        "protocol/Cargo.toml",
        "protocol/src",
    ];
    for source in sources {
        println!("cargo:rerun-if-changed={source}");
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    for (architecture, target, relocation_model) in TARGETS {
        require(target);
        let target_dir = out.join("bare");
        build(target, relocation_model, &target_dir);
        for guest in GUESTS {
            let built = target_dir.join(target).join("release").join(guest);
            let kept = out.join(format!("{guest}-{architecture}"));
            if let Err(error) = fs::copy(&built, &kept) {
                fail(&format!("{} can't be copied to {}: {error}", built.display(), kept.display()));
            }
        }
    }
}

/// End the build, unless rustc has the core library for `target`.
fn require(target: &str) {
    let output = run(Command::new(variable("RUSTC")).args(["--print", "target-libdir", "--target", target]));
    if !Path::new(output.trim()).is_dir() {
        let all = TARGETS.map(|(_, target, _)| target).join(" ");
        fail(&format!(
            "the guests inside skep need Rust's target {target}, which is not installed: rustup target add {all}"
        ));
    }
}

fn build(target: &str, relocation_model: &str, target_dir: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_for_the_host) {
            cargo.env_remove(name);
        }
    }
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Crelocation-model={relocation_model}"))
        .args(["build", "--release", "--quiet", "--locked", "--offline", "--target", target])
        .args(["--manifest-path", "bare/Cargo.toml"])
        .arg("--target-dir")
        .arg(target_dir);
    run(&mut cargo);
}

/// Whether the environment variable says how the outer cargo builds.
fn is_for_the_host(name: &str) -> bool {
    const KEPT: [&str; 3] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "RUSTC"];
    const PREFIXES: [&str; 3] = ["CARGO", "RUSTFLAGS", "RUSTC_"];
    !KEPT.contains(&name) && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What the command printed.
fn run(command: &mut Command) -> String {
    match command.output() {
        Err(error) => fail(&format!("{:?} can't be run: {error}", command.get_program())),
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            fail(&format!("{command:?} failed ({}):\n{said}", output.status))
        }
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1);
}
