//! Chooses how the guests are linked.

use std::env;
use std::path::Path;

fn main() {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo says what it builds for");
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo says where it builds");
    let script = Path::new(&folder).join("link").join(format!("{architecture}.ld"));
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
    println!("cargo:rustc-link-arg-bins=--gc-sections");
    println!("cargo:rustc-link-arg-bins=--strip-all");
    println!("cargo:rustc-link-arg-bins=--build-id=none");
    println!("cargo:rustc-link-arg-bins=-znognustack");
    match architecture.as_str() {
        "x86_64" => {
            // Loaded where it is linked. The probe has no header, hello has one that a PVH loader reads.
            println!("cargo:rustc-link-arg-bins=--no-pie");
            println!("cargo:rustc-link-arg-bin=probe=--oformat=binary");
        }
        _ => {
            // Relocates itself. Neither has an ELF header, hello has that of a Linux Image.
            println!("cargo:rustc-link-arg-bins=-pie");
            println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
            println!("cargo:rustc-link-arg-bins=--oformat=binary");
        }
    }
}
