use std::process::Command;

use super::*;
use crate::acpi::pci::test::{host, lines, tables};
use crate::acpi::{PciHost, iasl, link as place};

fn aml(made: impl FnOnce(&mut dyn AmlSink)) -> Vec<u8> {
    let mut aml = Vec::new();
    made(&mut aml);
    aml
}

#[test]
fn each_pin_has_the_link_of_its_line() {
    let aml = aml(|sink| routing(8, sink));
    // Package of four: device 3 and its functions, pin 2 (INTC#), PIRQ F, which is line 5, no index.
    let entry = [&[0x12, 0x0e, 0x04, 0x0c, 0xff, 0xff, 0x03, 0x00, 0x0a, 0x02], &b"LNKF"[..], &[0]].concat();
    assert_eq!(aml.windows(entry.len()).filter(|bytes| *bytes == entry).count(), 1, "{aml:02x?}");
    for pirq in b'A'..=b'H' {
        let name = [b'L', b'N', b'K', pirq];
        assert_eq!(aml.windows(4).filter(|bytes| *bytes == name).count(), 32 * 4 / 8);
    }
}

#[test]
fn a_descriptor_lists_its_interrupts() {
    let aml = aml(|sink| interrupts(&[5, 10]).to_aml_bytes(sink));
    assert_eq!(aml, [0x89, 10, 0, 0x0d, 2, 5, 0, 0, 0, 10, 0, 0, 0]);
    assert_eq!(aml[usize::from(NUMBER)], 5);
}

/// What Intel's interpreter answers to commands, over registers that are 0 at first.
fn run(commands: &[&str]) -> Vec<String> {
    let lines = lines(8);
    let linked = place(tables(&PciHost { lpc_bridge: Some(31), ..host(&lines) }));
    iasl::check(&linked);
    let (bytes, _) = linked.place(0xe_1000).unwrap();
    let part = linked.parts.iter().find(|part| bytes[part.start..].starts_with(b"DSDT")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("DSDT.dat"), &bytes[part.clone()]).unwrap();
    let arguments = ["-b", &commands.join(";"), "DSDT.dat"];
    let output = Command::new("acpiexec").args(arguments).current_dir(folder.path()).output();
    let output = output.expect("acpiexec is needed to run ACPI methods: install acpica-tools");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !told.contains("AE_"), "{told}");
    let value = |line: &str| {
        let line = line.trim();
        let value =
            line.strip_prefix("[Integer] = ").or_else(|| Some(line.strip_prefix("[Buffer]")?.split_once("0000: ")?.1));
        value.map(|value| value.split("//").next().unwrap_or_default().trim().to_owned())
    };
    told.lines().filter_map(value).collect()
}

#[test]
fn a_link_is_what_the_register_says() {
    const NONE: &str = "89 06 00 0D 01 00 00 00 00 79 00";
    const ELEVEN: &str = "89 06 00 0D 01 0B 00 00 00 79 00";
    let set = format!("evaluate \\_SB.PCI0.LNKF._SRS ({ELEVEN})");
    let ask = ["_STA", "_CRS"].map(|method| format!("evaluate \\_SB.PCI0.LNKF.{method}"));
    let [status, current] = [&*ask[0], &*ask[1]];
    let (register, other) = ("evaluate \\_SB.PCI0.PRQF", "evaluate \\_SB.PCI0.PRQE");
    let disable = "evaluate \\_SB.PCI0.LNKF._DIS";
    let told = run(&[&set, status, current, register, other, disable, status, current, register]);
    let integer = |value: u64| format!("{value:016X}");
    let enabled = [integer(0x0b), ELEVEN.to_owned(), integer(0x0b), integer(0)];
    let disabled = [integer(0x09), NONE.to_owned(), integer(0x8b)];
    assert_eq!(told, [&enabled[..], &disabled[..]].concat());
    // With the APICs in use there is none.
    assert_eq!(run(&["evaluate \\_PIC 1", status]), [integer(0)]);
}
