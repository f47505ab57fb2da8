//! Kernel modules of the lab's emulated host: which ones a module needs, and the change to kvm-amd.ko.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// What ends a signed module (Linux: include/linux/module_signature.h).
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// Size of `struct module_signature`, which ends with the signature's length as a big-endian number.
const SIGNATURE_DESCRIPTOR: usize = 12;

/// The names of the modules that `module` must be loaded after.
pub(crate) fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("this is no kernel module")?;
    let section = file.section_by_name(".modinfo").context("the module has no .modinfo")?;
    let names = section
        .data()?
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// Makes `svm_update_cr8_intercept` of kvm-amd.ko return at once, so that KVM intercepts CR8 writes always, as it
/// does when a vCPU is made.
///
/// QEMU's emulation of SVM (7.2 to 11.1 at least) aborts the whole emulated host when a guest writes CR8 while KVM
/// waits for an interrupt window; UEFI firmware does that within seconds. An always intercepted write does not come
/// to this. For the lab's emulated host only.
pub(crate) fn always_intercept_cr8(module: &[u8]) -> Result<Vec<u8>> {
    const FUNCTION: &str = "svm_update_cr8_intercept";
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    const CALL: u8 = 0xe8; // to __fentry__, five bytes
    const RET: u8 = 0xc3;

    // A wrong signature is refused by the kernel, a missing one is not.
    let mut module = unsigned(module)?.to_vec();
    let at = {
        let file = object::File::parse(module.as_slice()).context("this is no kernel module")?;
        let symbol = file
            .symbols()
            .find(|symbol| symbol.name() == Ok(FUNCTION) && symbol.kind() == SymbolKind::Text)
            .with_context(|| format!("the module has no function {FUNCTION}"))?;
        let section = file.section_by_index(symbol.section_index().context("the function is in no section")?)?;
        let (start, size) = section.file_range().context("the function's section is not in the file")?;
        if symbol.address() >= size {
            bail!("{FUNCTION} lies outside its section");
        }
        usize::try_from(start + symbol.address())?
    };
    let mut body = module.get_mut(at..).context("the module is cut off")?;
    if body.starts_with(ENDBR64) {
        body = &mut body[ENDBR64.len()..];
    }
    if body.first() == Some(&CALL) {
        body = body.get_mut(5..).context("the module is cut off")?;
    }
    *body.first_mut().context("the module is cut off")? = RET;
    Ok(module)
}

/// The module without its signature.
fn unsigned(module: &[u8]) -> Result<&[u8]> {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else { return Ok(module) };
    let descriptor = signed.last_chunk::<SIGNATURE_DESCRIPTOR>().context("the module's signature is cut off")?;
    let length = u32::from_be_bytes(*descriptor.last_chunk().expect("the descriptor is longer")) as usize;
    let end = signed.len().checked_sub(SIGNATURE_DESCRIPTOR + length).context("the module's signature is cut off")?;
    Ok(&signed[..end])
}

#[cfg(test)]
#[path = "module_test.rs"]
mod test;
