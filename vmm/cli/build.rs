//! How the static program that is handed out is linked.

use std::env;
use std::error::Error;
use std::path::PathBuf;

/// Tables for unwinding are of no use in a program without symbols that ends at a panic: 330 KB.
const NO_UNWINDING: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.eh_frame_hdr) } } INSERT AFTER .text;\n";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|one| one == value);
    // Other linkers know these by other names, if at all, and do well without.
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "musl") && is("RUSTC_LINKER", "rust-lld") {
        let script = PathBuf::from(env::var("OUT_DIR")?).join("no-unwinding.ld");
        std::fs::write(&script, NO_UNWINDING)?;
        let script = format!("--script={}", script.display());
        // A position-independent program's own addresses are packed: 100 KB. Functions of the same instructions are one: 100 KB.
        for word in ["-z", "pack-relative-relocs", "--icf=all", "-O2", "--no-eh-frame-hdr", &script] {
            println!("cargo::rustc-link-arg-bins={word}");
        }
    }
    Ok(())
}
