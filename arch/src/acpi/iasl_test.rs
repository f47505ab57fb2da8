//! The judge of all tables: Intel's compiler takes them apart and puts them together again.

use std::path::Path;
use std::process::Command;

use super::Linked;

/// Disassembles and recompiles each of the tables, placed at 0xe1000, and asserts that nothing is said about them
/// and that the same bytes come out.
pub(crate) fn check(linked: &Linked) {
    let (tables, rsdp) = linked.place(0xe_1000).unwrap();
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(&rsdp), 0);
    let folder = tempfile::tempdir().unwrap();
    assert!(linked.parts.len() > 3);
    for part in &linked.parts {
        let table = &tables[part.clone()];
        let name = std::str::from_utf8(&table[..4]).unwrap();
        assert_eq!(u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize, table.len(), "{name}");
        std::fs::write(folder.path().join(format!("{name}.dat")), table).unwrap();
        iasl(folder.path(), &["-d", &format!("{name}.dat")]);
        let told = iasl(folder.path(), &["-oa", "-tc", &format!("{name}.dsl")]);
        assert!(told.contains("0 Errors, 0 Warnings"), "{name}: {told}");
        assert!(!told.contains("Remarks") || told.contains("0 Remarks"), "{name}: {told}");
        let again = std::fs::read(folder.path().join(format!("{name}.aml"))).unwrap();
        assert_eq!(again.len(), table.len(), "{name}");
        if name != "FACS" {
            // The compiler signs with its own name.
            assert_eq!(sum(table), 0, "{name}");
            assert!(again[10..28] == table[10..28] && again[36..] == table[36..], "{name} comes out as another");
        }
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Runs iasl and answers what it says.
fn iasl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl").args(arguments).current_dir(folder).output();
    let output = output.expect("iasl is needed to check ACPI tables: install acpica-tools");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "iasl {arguments:?}: {told}");
    for word in ["Warning", "Error", "Remark", "Invalid", "Unknown"] {
        let lines = told.lines().filter(|line| line.contains(word) && !line.contains(" 0 Errors, 0 Warnings"));
        let lines: Vec<_> = lines.filter(|line| !line.contains("No errors")).collect();
        assert!(lines.is_empty(), "iasl {arguments:?}: {told}");
    }
    told
}
