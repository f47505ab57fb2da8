use super::*;

const KEYS: [&str; 5] = ["kernel", "initrd", "cmdline", "on", "firmware-vars"];

#[test]
fn a_slip_finds_its_key() {
    for (slip, key) in [
        ("kernal", "kernel"),
        ("kernle", "kernel"),
        ("Kernel", "kernel"),
        ("intird", "initrd"),
        ("cmd-line", "cmdline"),
        ("firmware_vars", "firmware-vars"),
        ("firmware-var", "firmware-vars"),
    ] {
        assert_eq!(nearest(slip, &KEYS), Some(key), "{slip}");
    }
}

#[test]
fn a_key_outside_its_table_finds_it() {
    for (slip, hint) in [("kernal", "boot.kernel"), ("on-reset", "on.reset"), ("firmware_vars", "boot.firmware-vars")] {
        let hint = format!("unknown key `{slip}`: did you mean `{hint}`?");
        assert_eq!(Problem::unknown_key(slip, &["boot", "on", "serial"]).to_string(), hint);
    }
    for key in NESTED {
        let text = format!("{key} = false");
        let error = crate::Config::from_toml(&text, "vm.toml".as_ref(), ArchKind::Aarch64).unwrap_err();
        assert!(!error.to_string().contains("unknown key"), "{error}");
    }
}

#[test]
fn a_strange_key_finds_none() {
    for strange in ["", "x", "disk", "kvm", "smp", "a-very-long-key-that-nothing-is-like"] {
        assert_eq!(nearest(strange, &KEYS), None, "{strange}");
    }
    assert_eq!(Problem::unknown_key("x", &["a", "bc"]).to_string(), "unknown key `x`: the keys here are a, bc");
}
