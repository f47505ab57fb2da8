//! What a file of UEFI's variables holds.

use std::path::Path;

/// Bytes of a variable's header (edk2's AUTHENTICATED_VARIABLE_HEADER), before its name: 2 to begin with, then its state.
const HEADER: usize = 60;
/// States: it is there; it is there, and about to be replaced.
const ADDED: u8 = 0x3f;
const LEAVING: u8 = 0x3e;

/// The value of the variable `name`, of `size` bytes, as firmware finds it at power-on. Its name is in no other's.
///
/// # Panics
/// If there are two that are there.
pub fn value(file: &Path, name: &str, size: usize) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).expect("a file of variables");
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let of = |state: u8| {
        let found = bytes.windows(name.len()).enumerate().filter(|(at, window)| {
            let start = at.checked_sub(HEADER).map(|start| &bytes[start..start + 3]);
            *window == name && start == Some(&[0xaa, 0x55, state])
        });
        let values = found.map(|(at, _)| bytes[at + name.len()..][..size].to_vec()).collect::<Vec<_>>();
        assert!(values.len() < 2, "{values:x?} are there at once");
        values.into_iter().next()
    };
    of(ADDED).or_else(|| of(LEAVING))
}
